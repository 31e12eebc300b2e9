"""How many samples a second dpbench answers, against lmms-eval's own adapter and against itself.

    python benchmarks/throughput.py [--tasks pope,gqa] [--limit 60] [--repeats 3] [--threads N]
    python benchmarks/throughput.py grid [--limit 60]
    python benchmarks/throughput.py batch [--device cuda] [--backbone llava-1.5] [--dtype float16] [--questions 8]

The first answers the same samples of toy-llava, unpruned, with dpbench and with lmms-eval's `llava_hf` (which takes the
package decord), in turns, and counts answers that differ. dpbench's time includes journal and per-sample scores.
`grid` runs 16 cells in one process and in 16, from start to records. `batch` answers invented questions about JPEG
files of noise with random weights: one at a time, batched, and batched with the next batch's images made ready
meanwhile, as `dpbench run` does. It needs neither lmms-eval nor data.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py would hide the standard library's module

import argparse
import copy
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from dpbench import backbones
from dpbench.backbones.base import Backbone
from dpbench.cli import arguments
from dpbench.engine import answers, feature_cache
from dpbench.engine.encoding import Encoder
from dpbench.evaluation import answering
from dpbench.evaluation.runner import FEATURE_CACHE
from dpbench.machine.device import keep_freed_memory
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest

GRID = {"methods": ["random", "cls-attention", "fastv", "holov"], "budgets": [16, 32], "tasks": ["pope", "gqa"]}
WORDS = ("what", "is", "the", "colour", "of", "small", "things", "that", "stand", "behind", "a", "large", "square")


def cell_of(backbone: str, task: str, method: str = "none", keep: int | None = None) -> Cell:
    """Return one cell, without fingerprints."""
    given: dict[str, Any] = {"name": "throughput", "backbone": backbone, "methods": [method], "tasks": [task]}
    if keep is not None:
        given["budgets"] = {"keep": [keep]}
    return next(cells(make_manifest(given, source="benchmarks/throughput.py")))


def ours(
    backbone: Backbone, built: Any, cell: Cell, batch_size: int | str = "auto", *, ahead: bool = True
) -> tuple[float, list[str]]:
    """Answer a task as `dpbench run` does, from requests to the journal; return seconds and answers in order."""
    with TemporaryDirectory() as folder:
        cache = feature_cache.FeatureCache(FEATURE_CACHE)
        running = answering.start(cell, backbone, Path(folder), cache)
        encoder = Encoder(backbone, built, cache, answering.needs_of(backbone, [running]), ahead=ahead)
        seconds = timed(lambda: list(answering.answer(backbone, [running], built, built.requests, batch_size, encoder)))
        known = running.journal.answers
    return seconds, [known[each.task, each.doc_id, each.prompt_hash].answer for each in built.requests]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes, to the end of what it left to the GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def against_lmms_eval(tasks: Sequence[str], limit: int | None, repeats: int) -> None:
    """Print samples a second of dpbench and of lmms-eval's adapter, and how many answers differ."""
    from lmms_eval.models.simple.llava_hf import LlavaHf

    from dpbench.tasks import lmms_eval_adapter

    keep_freed_memory()  # as `dpbench run` does; lmms-eval's turns gain from it as well
    folder = backbones.locate("toy-llava")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    peer = LlavaHf(str(folder), device="cpu", device_map="cpu", dtype="float32", chat_template=template)
    backbone = backbones.load("toy-llava")
    rows, seconds = [], np.zeros(2)
    for name in tasks:
        built, cell = lmms_eval_adapter.build(name, arguments.toy_data_root(), limit=limit), cell_of("toy-llava", name)
        turns = [(theirs_of(peer, built), ours(backbone, built, cell)) for _ in range(repeats)]
        theirs_s, ours_s = (median(turn[side][0] for turn in turns) for side in (0, 1))
        differ = sum(one != other for one, other in zip(turns[0][0][1], turns[0][1][1], strict=True))
        num, images = len(built.requests), len({built.image_group(each) for each in built.requests})
        seconds += (theirs_s, ours_s)
        rows.append((name, num, images, num / theirs_s, num / ours_s, theirs_s / ours_s, differ))
    total, (theirs_s, ours_s) = sum(row[1] for row in rows), seconds
    rows.append(("all", total, sum(row[2] for row in rows), total / theirs_s, total / ours_s, theirs_s / ours_s,
                 sum(row[6] for row in rows)))  # fmt: skip
    heads = ("task", "samples", "images", "llava_hf /s", "dpbench /s", "ratio", "answers that differ")
    print(tabulate(rows, heads, "github", floatfmt=".2f"))


def theirs_of(peer: Any, built: Any) -> tuple[float, list[str]]:
    """Answer a task with lmms-eval's adapter; it changes its requests' settings, so it gets copies."""
    peer.task_dict[built.task.config.task] = built.task.dataset
    instances = [copy.copy(each) for each in built.task.instances]
    for each in instances:
        each.arguments = (each.args[0], copy.deepcopy(each.args[1]), *each.args[2:])
    said: list[str] = []
    seconds = timed(lambda: said.extend(peer.generate_until(instances)))
    pairs = zip(said, built.requests, strict=True)
    return seconds, [answers.truncate_at_stops(text, request.until) for text, request in pairs]


def grid(limit: int) -> None:
    """Print the wall time of 16 cells in one process and in 16."""
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
        one = timed(lambda: subprocess.run([*program, str(manifest), *common], check=True, capture_output=True))
        many = timed(lambda: [subprocess.run(each, check=True, capture_output=True) for each in singles])
    print(f"16 cells, {limit} samples each: one process {one:.1f} s, 16 processes {many:.1f} s, ratio {one / many:.2f}")


@dataclass(frozen=True, slots=True)
class Question:
    """An invented request; fields as in `dpbench.lmms.Request`."""

    doc_id: int
    text: str
    max_new_tokens: int
    task: str = "pope"
    until: tuple[str, ...] = ()

    @property
    def prompt_hash(self) -> str:
        """Return what tells this prompt from another."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Invented:
    """Questions about noise, several about each picture: what `answering` asks of a `dpbench.lmms.BuiltTask`."""

    num_images: int
    num_questions: int
    max_new_tokens: int
    size: tuple[int, ...]
    requests: tuple[Question, ...] = field(init=False)
    files: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, rng.integers(6, 30))) for _ in range(self.num_images * self.num_questions)]
        made = tuple(Question(number, text, self.max_new_tokens) for number, text in enumerate(texts))
        object.__setattr__(self, "requests", made)
        object.__setattr__(self, "files", tuple(map(self._file, range(self.num_images))))

    def _file(self, number: int) -> bytes:
        """Return a picture of coloured patches as a JPEG file."""
        patches = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        held = BytesIO()
        Image.fromarray(patches).resize((self.size[0], self.size[1]), Image.Resampling.BICUBIC).save(
            held, "jpeg", quality=90
        )
        return held.getvalue()

    def image_hashes(self, request: Question) -> tuple[str, ...]:
        """Name a question's picture."""
        return (str(request.doc_id // self.num_questions),)

    def image_group(self, request: Question) -> str:
        """Name a question's picture."""
        return self.image_hashes(request)[0]

    def images(self, request: Question) -> list[Image.Image]:
        """Decode a question's picture."""
        image = Image.open(BytesIO(self.files[int(self.image_group(request))]))
        image.load()
        return [image]

    def scores(self, request: Question, answer: str) -> dict[str, Any]:
        """Score nothing."""
        return {}


def batched(given: argparse.Namespace) -> None:
    """Print samples a second one at a time and batched, with one and with several questions about each image."""
    weights = None if given.backbone == "toy-llava" else "random"
    backbone = backbones.load(given.backbone, weights=weights, device=given.device, dtype=given.dtype)
    cell = cell_of(given.backbone, "pope", given.method, given.keep)
    size = tuple(map(int, given.size.split("x")))
    rows = []
    for questions in dict.fromkeys((1, given.questions)):
        built = Invented(given.samples // questions, questions, given.max_new_tokens, size)
        for_one = Invented(max(1, given.samples // questions // 8), questions, given.max_new_tokens, size)
        ours(backbone, Invented(2, questions, 2, size), cell)
        alone_s, alone = ours(backbone, for_one, cell, 1, ahead=False)
        waiting_s, _ = ours(backbone, built, cell, given.batch_size, ahead=False)
        batch_s, _ = ours(backbone, built, cell, given.batch_size)
        single, waiting, rate = len(alone) / alone_s, len(built.requests) / waiting_s, len(built.requests) / batch_s
        _, matched = ours(backbone, for_one, cell, given.batch_size)
        differ = sum(one != other for one, other in zip(alone, matched, strict=True)) / len(alone)
        rows.append((questions, len(built.requests), single, waiting, rate, rate / single, f"{100 * differ:.1f} %"))
    place = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{given.backbone}, {given.method}, {given.dtype}, {given.max_new_tokens} new tokens, {given.size}, {place}")
    batch = f"batch {given.batch_size}"
    heads = (
        "questions per image",
        "samples",
        "batch 1 /s",
        f"{batch} /s",
        f"{batch}, images ahead /s",
        "ratio",
        "differ",
    )
    print(tabulate(rows, heads, "github", floatfmt=".2f"))


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
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what == "grid":
        grid(given.limit)
    elif given.what == "batch":
        batched(given)
    else:
        against_lmms_eval(given.tasks.split(","), given.limit, given.repeats)


if __name__ == "__main__":
    main()
