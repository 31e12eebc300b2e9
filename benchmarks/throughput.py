"""Samples per second that dpbench answers, compared with lmms-eval's own adapter and with itself.

    python benchmarks/throughput.py [--tasks pope,gqa] [--limit 60] [--repeats 3] [--threads N]
    python benchmarks/throughput.py grid [--limit 60]
    python benchmarks/throughput.py batch [--device cuda] [--backbone llava-1.5] [--dtype float16] [--questions 8]

The first command answers the same samples of toy-llava, unpruned, with dpbench and with lmms-eval's `llava_hf` (which
needs the package decord), in turn, and counts answers that differ. dpbench's time includes journal and per-sample
scores. `grid` runs 16 cells in one process and in 16, from start to records. `batch` answers made-up questions about
noise JPEG files with random weights: one at a time, batched, and batched while the images of the next batch are
prepared, as `dpbench run` does. It needs neither lmms-eval nor data.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py would hide the standard library's module

import argparse
import copy
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from dpbench import backbones
from dpbench.backbones.base import Backbone
from dpbench.engine import answers, feature_cache
from dpbench.engine.encoding import Encoder
from dpbench.evaluation import answering
from dpbench.evaluation.runner import FEATURE_CACHE
from dpbench.machine.device import keep_freed_memory
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.tasks.data.root import toy_data_root

if TYPE_CHECKING:
    from dpbench.tasks.lmms_eval_adapter import Request

GRID: dict[str, list[Any]] = {
    "methods": ["random", "cls-attention", "fastv", "holov"],
    "budgets": [16, 32],
    "tasks": ["pope", "gqa"],
}
WORDS = ("what", "is", "the", "colour", "of", "small", "things", "that", "stand", "behind", "a", "large", "square")


def cell_of(backbone: str, task: str, method: str = "none", keep: int | None = None) -> Cell:
    """Return one cell."""
    data: dict[str, Any] = {"name": "throughput", "backbone": backbone, "methods": [method], "tasks": [task]}
    if keep is not None:
        data["budgets"] = {"keep": [keep]}
    return next(cells(make_manifest(data, source="benchmarks/throughput.py")))


class WaitingEncoder(Encoder):
    """An encoder that prepares the images of a batch only when its turn comes."""

    def start_batch(self, requests: Iterable[Request], following: Iterable[Request]) -> None:
        """Start a batch without preparing the one after it."""
        super().start_batch(requests, ())


def answer_by_dpbench(
    backbone: Backbone, built: Any, cell: Cell, batch_size: int | str = "auto", *, ahead: bool = True
) -> tuple[float, list[str]]:
    """Answer a task as `dpbench run` does, from requests to the journal; return seconds and answers in order."""
    with TemporaryDirectory() as folder:
        cache = feature_cache.FeatureCache(FEATURE_CACHE)
        active = answering.open_cell(cell, backbone, Path(folder), cache)
        encoder_class = Encoder if ahead else WaitingEncoder
        encoder = encoder_class(backbone, built, cache, answering.needs_of(backbone, [active]))
        seconds = measure(
            lambda: list(answering.answer(backbone, [active], built, built.requests, batch_size, encoder))
        )
        journalled = active.journal.answers
    return seconds, [journalled[request.task, request.doc_id, request.prompt_hash].answer for request in built.requests]


def measure(work: Callable[[], object]) -> float:
    """Return the seconds that work takes, GPU work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_with_lmms_eval(tasks: Sequence[str], limit: int | None, repeats: int) -> None:
    """Print samples per second of dpbench and of lmms-eval's adapter, and the number of answers that differ."""
    from lmms_eval.models.simple.llava_hf import LlavaHf

    from dpbench.tasks import lmms_eval_adapter

    keep_freed_memory()  # as `dpbench run` does; it also speeds up lmms-eval's turns
    folder = backbones.locate("toy-llava")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    peer = LlavaHf(str(folder), device="cpu", device_map="cpu", dtype="float32", chat_template=template)
    backbone = backbones.load("toy-llava")
    rows, seconds = [], np.zeros(2)
    for name in tasks:
        built, cell = lmms_eval_adapter.build(name, toy_data_root(), limit=limit), cell_of("toy-llava", name)
        turns = [(answer_by_lmms_eval(peer, built), answer_by_dpbench(backbone, built, cell)) for _ in range(repeats)]
        theirs_s, ours_s = (median(turn[side][0] for turn in turns) for side in (0, 1))
        num_different = sum(one != other for one, other in zip(turns[0][0][1], turns[0][1][1], strict=True))
        num, images = len(built.requests), len({built.image_group(request) for request in built.requests})
        seconds += (theirs_s, ours_s)
        rows.append((name, num, images, num / theirs_s, num / ours_s, theirs_s / ours_s, num_different))
    total, (theirs_s, ours_s) = sum(row[1] for row in rows), seconds
    rows.append(("all", total, sum(row[2] for row in rows), total / theirs_s, total / ours_s, theirs_s / ours_s,
                 sum(row[6] for row in rows)))  # fmt: skip
    headers = ("task", "samples", "images", "llava_hf /s", "dpbench /s", "ratio", "answers that differ")
    print(tabulate(rows, headers, "github", floatfmt=".2f"))


def answer_by_lmms_eval(peer: Any, built: Any) -> tuple[float, list[str]]:
    """Answer a task with lmms-eval's adapter; it changes its requests' settings, so it gets copies."""
    peer.task_dict[built.task.config.task] = built.task.dataset
    instances = [copy.copy(instance) for instance in built.task.instances]
    for instance in instances:
        instance.arguments = (instance.args[0], copy.deepcopy(instance.args[1]), *instance.args[2:])
    texts: list[str] = []
    seconds = measure(lambda: texts.extend(peer.generate_until(instances)))
    pairs = zip(texts, built.requests, strict=True)
    return seconds, [answers.truncate_at_stops(text, request.until) for text, request in pairs]


def compare_processes(limit: int) -> None:
    """Print the wall time of 16 cells in one process and in 16 processes."""
    program = [sys.executable, "-m", "dpbench", "run"]
    with TemporaryDirectory() as folder:
        common = ["--limit", str(limit), "--device", "cpu", "--out", folder]
        manifest = Path(folder) / "grid.yaml"
        manifest.write_text(
            f"name: grid\nbackbone: toy-llava\nmethods: {GRID['methods']}\nbudgets: {{keep: {GRID['budgets']}}}\n"
            f"tasks: {GRID['tasks']}\n"
        )
        singles = [
            [*program, *common, "--backbone", "toy-llava", "--method", method, "--keep", str(keep), "--tasks", task]
            for method in GRID["methods"] for keep in GRID["budgets"] for task in GRID["tasks"]
        ]  # fmt: skip
        one = measure(lambda: subprocess.run([*program, str(manifest), *common], check=True, capture_output=True))
        many = measure(lambda: [subprocess.run(command, check=True, capture_output=True) for command in singles])
    print(f"16 cells, {limit} samples each: one process {one:.1f} s, 16 processes {many:.1f} s, ratio {one / many:.2f}")


@dataclass(frozen=True, slots=True)
class Question:
    """A made-up request; fields as in `dpbench.tasks.lmms_eval_adapter.Request`."""

    doc_id: int
    text: str
    max_new_tokens: int
    task: str = "pope"
    until: tuple[str, ...] = ()

    @property
    def prompt_hash(self) -> str:
        """Return a hash of the prompt."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class NoiseTask:
    """Questions about noise, several per picture; has what `answering` reads of a `BuiltTask`."""

    num_images: int
    num_questions: int
    max_new_tokens: int
    size: tuple[int, ...]
    requests: tuple[Question, ...] = field(init=False)
    files: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, rng.integers(6, 30))) for _ in range(self.num_images * self.num_questions)]
        requests = tuple(Question(number, text, self.max_new_tokens) for number, text in enumerate(texts))
        object.__setattr__(self, "requests", requests)
        object.__setattr__(self, "files", tuple(map(self._build_file, range(self.num_images))))

    def _build_file(self, number: int) -> bytes:
        """Return a picture of coloured patches as a JPEG file."""
        patches = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        stream = BytesIO()
        Image.fromarray(patches).resize((self.size[0], self.size[1]), Image.Resampling.BICUBIC).save(
            stream, "jpeg", quality=90
        )
        return stream.getvalue()

    def image_hashes(self, request: Question) -> tuple[str, ...]:
        """Return the name of a question's picture."""
        return (str(request.doc_id // self.num_questions),)

    def image_group(self, request: Question) -> str:
        """Return the name of a question's picture."""
        return self.image_hashes(request)[0]

    def images(self, request: Question) -> list[Image.Image]:
        """Decode a question's picture."""
        image = Image.open(BytesIO(self.files[int(self.image_group(request))]))
        image.load()
        return [image]

    def scores(self, request: Question, answer: str) -> dict[str, Any]:
        """Return no scores."""
        return {}


def compare_batches(options: argparse.Namespace) -> None:
    """Print samples per second one at a time and batched, with one and with several questions per image."""
    weights = None if options.backbone == "toy-llava" else "random"
    backbone = backbones.load(options.backbone, weights=weights, device=options.device, dtype=options.dtype)
    cell = cell_of(options.backbone, "pope", options.method, options.keep)
    size = tuple(map(int, options.size.split("x")))
    rows = []
    for questions in dict.fromkeys((1, options.questions)):
        built = NoiseTask(options.samples // questions, questions, options.max_new_tokens, size)
        small = NoiseTask(max(1, options.samples // questions // 8), questions, options.max_new_tokens, size)
        answer_by_dpbench(backbone, NoiseTask(2, questions, 2, size), cell)
        alone_s, alone = answer_by_dpbench(backbone, small, cell, 1, ahead=False)
        waiting_s, _ = answer_by_dpbench(backbone, built, cell, options.batch_size, ahead=False)
        batch_s, _ = answer_by_dpbench(backbone, built, cell, options.batch_size)
        single, waiting, rate = len(alone) / alone_s, len(built.requests) / waiting_s, len(built.requests) / batch_s
        _, matched = answer_by_dpbench(backbone, small, cell, options.batch_size)
        different = sum(one != other for one, other in zip(alone, matched, strict=True)) / len(alone)
        rows.append((questions, len(built.requests), single, waiting, rate, rate / single, f"{100 * different:.1f} %"))
    place = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    model = f"{options.backbone}, {options.method}, {options.dtype}"
    print(f"{model}, {options.max_new_tokens} new tokens, {options.size}, {place}")
    batch = f"batch {options.batch_size}"
    headers = (
        "questions per image",
        "samples",
        "batch 1 /s",
        f"{batch} /s",
        f"{batch}, images ahead /s",
        "ratio",
        "differ",
    )
    print(tabulate(rows, headers, "github", floatfmt=".2f"))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("lmms-eval", "grid", "batch"), default="lmms-eval")
    parser.add_argument("--tasks", default="gqa,mmbench_en,mme,pope,vqav2,textvqa")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backbone", default="toy-llava")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--method", default="none")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--size", default="640x480")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "grid":
        compare_processes(options.limit)
    elif options.what == "batch":
        compare_batches(options)
    else:
        compare_with_lmms_eval(options.tasks.split(","), options.limit, options.repeats)


if __name__ == "__main__":
    main()
