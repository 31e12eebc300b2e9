"""One loaded backbone, many cells: answer what no journal holds yet, then score and record each finished cell."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dpbench import backbones, record, registry
from dpbench.errors import ConfigError
from dpbench.fingerprint import fingerprints
from dpbench.journal import Answer, Journal, pack_indices
from dpbench.manifest import Cell, Manifest, cells, num_kept, with_fingerprints
from dpbench.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpbench.backbones.base import Backbone, Features, Prompt
    from dpbench.lmms import BuiltTask, Request
    from dpbench.method import Method

AUTO_BATCH = 32
NO_IMAGE = "image could not be decoded"


@dataclass(frozen=True, slots=True)
class Plan:
    """A manifest's cells, split by whether a record exists.

    Attributes:
        folder: where this run's files go.
        pending: cells without a record.
        done: records of the manifest's finished cells.
    """

    folder: Path
    pending: tuple[Cell, ...]
    done: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: the records it added, in order, and those that were there."""

    added: tuple[Record, ...]
    found: tuple[Record, ...]

    @property
    def num_failed(self) -> int:
        """Return how many samples of the new cells have no answer."""
        return sum(each.num_failed for each in self.added)


@dataclass(slots=True)
class Running:
    """A pending cell with its method bound and its journal open."""

    cell: Cell
    method: Method
    journal: Journal


def plan(manifest: Manifest, out: Path, data_root: Path | None) -> Plan:
    """Expand a manifest and look up which of its cells are recorded.

    Raises:
        MissingError: weights or data are not there.
    """
    folder = out / manifest.name
    known = {each.cell_id: each for each in record.read(folder / "records.jsonl", Record)}
    wanted = [with_fingerprints(cell, fingerprints(cell, data_root)) for cell in cells(manifest)]
    return Plan(
        folder,
        tuple(cell for cell in wanted if cell.id not in known),
        tuple(known[cell.id] for cell in wanted if cell.id in known),
    )


def run(
    manifest: Manifest, out: Path, data_root: Path | None, *, device: str = "auto", console: Console | None = None
) -> Outcome:
    """Run every cell of a manifest that has no record yet.

    Args:
        manifest: what to run.
        out: results go to `out/<manifest name>/`.
        data_root: where the benchmarks' data lies, or None for the hub's cache.
        device: "auto", "cpu" or "cuda".
        console: where progress goes.

    Raises:
        ConfigError: another process holds this run's folder, or the device is not there.
        MissingError: weights or data are not there.
    """
    console = console or Console(stderr=True)
    device = pick_device(device)
    folder = out / manifest.name
    plan(manifest, out, data_root)
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder):
        planned = plan(manifest, out, data_root)
        console.print(f"{len(planned.pending)} cells to run, {len(planned.done)} done already")
        if not planned.pending:
            return Outcome((), planned.done)
        _write_header(manifest, folder, device)
        added = tuple(_run_cells(manifest, planned, data_root, device, console))
        record.rewrite(folder / "records.jsonl", record.read(folder / "records.jsonl", Record))
        return Outcome(added, planned.done)


def pick_device(device: str) -> str:
    """Return "cuda" or "cpu".

    Raises:
        ConfigError: "cuda" was asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device: cuda was asked for, but torch sees no GPU here; use --device cpu")
    return device


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; two processes on one folder take turns."""
    try:
        with FileLock(folder / "run.lock", timeout=0.2):
            yield
    except Timeout:
        raise ConfigError(f"{folder}: another dpbench is running there; wait for it or give another --out") from None


def _write_header(manifest: Manifest, folder: Path, device: str) -> None:
    from dpbench.measure.environment import environment, versions

    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / "manifest.yaml").write_text(text, encoding="utf-8")
    found = {"versions": versions(), **environment(device)}
    (folder / "environment.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _run_cells(
    manifest: Manifest, planned: Plan, data_root: Path | None, device: str, console: Console
) -> Iterator[Record]:
    from dpbench import lmms

    protocol = manifest.protocol
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = backbones.load(
            manifest.backbone.name,
            weights=manifest.backbone.weights,
            device=device,
            dtype=protocol.dtype,
            attention=protocol.attention,
        )
        running = [_start(cell, backbone, planned.folder) for cell in planned.pending]
    names = list(dict.fromkeys(each.cell.task for each in running))
    with console.status("loading the benchmarks"):
        built = {name: lmms.build(name, data_root, limit=protocol.limit, ocr=protocol.ocr) for name in names}
    total = sum(len(built[each.cell.task].requests) for each in running)
    with _progress(console) as bar:
        job = bar.add_task("starting", total=total)
        for name in names:
            group = [each for each in running if each.cell.task == name]
            for progress, label in _answer(backbone, group, built[name], protocol.batch_size):
                bar.update(job, advance=progress, description=label)
            for each in group:
                yield _finish(each, built[name], planned.folder, backbone.num_layers, device)


class RateColumn(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        """Show the rate, or nothing before there is one."""
        return Text(f"{task.speed:.1f}/s, left:" if task.speed else "")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples,"),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _start(cell: Cell, backbone: Backbone, folder: Path) -> Running:
    method = registry.load(cell.method, cell.params).bind(backbone)
    method.needs(backbone.provides)
    return Running(cell, method, Journal(folder / "samples" / f"{cell.id}.jsonl"))


def _answer(
    backbone: Backbone, group: Sequence[Running], built: BuiltTask, batch_size: int | str
) -> Iterator[tuple[int, str]]:
    """Answer one task's samples for all its cells, batch by batch; yields how many were done and what is next."""
    size = AUTO_BATCH if batch_size == "auto" else int(batch_size)
    needs = frozenset().union(*(each.method.needs(backbone.provides) for each in group))
    requests = sorted(built.requests, key=lambda request: len(request.text))
    for at in range(0, len(requests), size):
        batch = requests[at : at + size]
        missing = {id(each): _unanswered(each, batch) for each in group}
        yield sum(len(batch) - len(todo) for todo in missing.values()), group[0].cell.task
        wanted = [request for request in batch if any(request in todo for todo in missing.values())]
        if not wanted:
            continue
        samples = _encode(backbone, built, wanted, needs)
        for each in group:
            todo = missing[id(each)]
            if todo:
                _answer_cell(backbone, each, built, [samples[request.doc_id] for request in todo])
                yield len(todo), each.cell.label


def _unanswered(running: Running, batch: Sequence[Request]) -> list[Request]:
    known = running.journal.answers
    return [r for r in batch if (r.task, r.doc_id, r.prompt_hash) not in known]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with its images encoded; `failure` says why it has none."""

    request: Request
    prompt: Prompt | None
    features: tuple[Features, ...]
    image_hash: str
    failure: str | None = None


def _encode(
    backbone: Backbone, built: BuiltTask, requests: Sequence[Request], needs: frozenset[str]
) -> dict[int, Sample]:
    """Decode and encode a batch's images, each different image once."""
    opened = {request.doc_id: _open(built, request) for request in requests}
    hashes = {doc_id: [_image_hash(image) for image in images or ()] for doc_id, images in opened.items()}
    prompts = {
        r.doc_id: backbone.prompt(opened[r.doc_id] or (), r.text) for r in requests if opened[r.doc_id] is not None
    }
    pixels = {h: p for doc_id, prompt in prompts.items() for h, p in zip(hashes[doc_id], prompt.pixels, strict=True)}
    features = dict(zip(pixels, backbone.encode(list(pixels.values()), needs), strict=True)) if pixels else {}
    return {
        request.doc_id: Sample(
            request,
            prompts.get(request.doc_id),
            tuple(features[h] for h in hashes[request.doc_id]),
            sha256("".join(hashes[request.doc_id]).encode()).hexdigest()[:16],
            NO_IMAGE if opened[request.doc_id] is None else None,
        )
        for request in requests
    }


def _open(built: BuiltTask, request: Request) -> list[Image] | None:
    """Decode a sample's images, or return None if the bytes are no image."""
    try:
        return built.images(request)
    except OSError:
        return None


def _image_hash(image: Image) -> str:
    return sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


def _answer_cell(backbone: Backbone, running: Running, built: BuiltTask, samples: Sequence[Sample]) -> None:
    """Prune and answer a batch under one cell, and journal it."""
    from dpbench import pruning

    start = time.perf_counter()
    cell, good = running.cell, [sample for sample in samples if sample.prompt is not None]
    spliced = [_splice(backbone, running, sample) for sample in good]
    texts = pruning.generate(backbone, spliced, max_new_tokens=good[0].request.max_new_tokens) if good else []
    elapsed = time.perf_counter() - start
    done = {s.request.doc_id: (text, cut) for s, text, cut in zip(good, texts, spliced, strict=True)}
    answers = []
    for sample in samples:
        text, cut = done.get(sample.request.doc_id, ("", None))
        text = until(text, sample.request.until)
        sizes = [len(feature.embeds_ND) for feature in sample.features]
        kept = [pack_indices(r.indices_K.tolist(), n) for r, n in zip(cut.kept, sizes, strict=True)] if cut else []
        answers.append(
            Answer(
                task=cell.task,
                doc_id=sample.request.doc_id,
                image_hash=sample.image_hash,
                prompt_hash=sample.request.prompt_hash,
                image_group=sample.image_hash,
                answer=text,
                scores=plain(built.scores(sample.request, text)),
                visual_tokens=(cut.num_visual,) * backbone.num_layers if cut else (),
                kept=tuple(kept),
                failure=sample.failure,
                seed=cell.seed,
                shard=0,
                ms=1000 * elapsed / len(samples),
            )
        )
    running.journal.append(answers)


def _splice(backbone: Backbone, running: Running, sample: Sample) -> Any:
    from dpbench import pruning

    assert sample.prompt is not None
    cell, doc_id = running.cell, sample.request.doc_id
    visuals = [
        pruning.visual_tokens(
            features, sample.prompt.question, pruning.image_generator(cell.seed, f"{cell.task}/{doc_id}", image)
        )
        for image, features in enumerate(sample.features)
    ]
    keep = [num_kept(len(visual), cell.keep, cell.prune_rate) for visual in visuals]
    return pruning.splice(backbone, running.method, sample.prompt, visuals, keep)


def until(text: str, stops: Iterable[str]) -> str:
    """Cut an answer at the first of the task's stop strings."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def plain(value: Any) -> Any:
    """Turn numpy scalars inside nested containers into Python's own numbers."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def _finish(running: Running, built: BuiltTask, folder: Path, num_layers: int, device: str) -> Record:
    """Score a fully answered cell and write its record."""
    from dpbench import lmms
    from dpbench.measure.environment import environment, versions

    cell = running.cell
    known = [running.journal.answers[r.task, r.doc_id, r.prompt_hash] for r in built.requests]
    by_prompt = {(r.doc_id, r.text): a.answer for r, a in zip(built.requests, known, strict=True)}
    scores = lmms.score(built, cell.id, by_prompt)
    read = [answer.visual_tokens for answer in known if answer.visual_tokens]
    per_layer = tuple(sum(each[layer] for each in read) / len(read) for layer in range(num_layers)) if read else ()
    finished = Record(
        cell_id=cell.id,
        cell=asdict(cell),
        metrics=scores.metrics,
        score=lmms.percent(cell.task, scores),
        num_samples=len(known),
        num_failed=sum(answer.failure is not None for answer in known),
        visual_tokens_per_layer=per_layer,
        wall_s=sum(answer.ms for answer in known) / 1000,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        environment=environment(device),
    )
    record.append(folder / "records.jsonl", finished)
    return finished
