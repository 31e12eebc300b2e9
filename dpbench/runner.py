"""One loaded backbone, many cells: answer what no journal holds yet, then score and record each finished cell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
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

from dpbench import backbones, record
from dpbench.errors import ConfigError
from dpbench.fingerprint import fingerprints
from dpbench.manifest import Cell, Manifest, cells, with_fingerprints
from dpbench.record import Record

if TYPE_CHECKING:
    from dpbench.answering import Running
    from dpbench.backbones.base import Backbone
    from dpbench.lmms import BuiltTask


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
        """Return how many samples of the manifest's cells have no answer."""
        return sum(each.num_failed for each in (*self.added, *self.found))


def plan(manifest: Manifest, out: Path, data_root: Path | None) -> Plan:
    """Expand a manifest and look up which of its cells are recorded.

    Raises:
        MissingError: weights or data are not there.
    """
    folder = out / manifest.name
    known = {each.cell_id: each for each in record.read(folder / "records.jsonl", Record)}
    wanted = [with_fingerprints(cell, fingerprints(cell, data_root)) for cell in cells(manifest)]
    wanted = list({cell.id: cell for cell in wanted}.values())
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
    from dpbench import answering, lmms
    from dpbench.measure.environment import environment

    protocol, found = manifest.protocol, environment(device)
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
        running = [answering.start(cell, backbone, planned.folder) for cell in planned.pending]
    names = list(dict.fromkeys(each.cell.task for each in running))
    with console.status("loading the benchmarks"):
        built = {name: lmms.build(name, data_root, limit=protocol.limit, ocr=protocol.ocr) for name in names}
    total = sum(len(built[each.cell.task].requests) for each in running)
    with _progress(console) as bar:
        job = bar.add_task("starting", total=total)
        for name in names:
            group = [each for each in running if each.cell.task == name]
            for progress, label in answering.answer(backbone, group, built[name], protocol.batch_size):
                bar.update(job, advance=progress, description=label)
            for each in group:
                yield _finish(each, built[name], planned.folder, backbone.num_layers, found)


def load_backbone(manifest: Manifest, device: str) -> Backbone:
    """Load the backbone a manifest describes.

    Raises:
        MissingError: the weights are not there.
    """
    entry, protocol = manifest.backbone, manifest.protocol
    return backbones.load(
        entry.name,
        weights=entry.weights,
        revision=entry.revision,
        device=device,
        dtype=protocol.dtype,
        attention=protocol.attention,
        device_map=entry.device_map,
        quantize=entry.quantize,
        prompt=protocol.prompt,
        pixels=(protocol.min_pixels, protocol.max_pixels),
    )


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


def _finish(running: Running, built: BuiltTask, folder: Path, num_layers: int, found: dict[str, Any]) -> Record:
    """Score a fully answered cell and write its record."""
    from dpbench import lmms
    from dpbench.measure.environment import versions

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
        environment=found,
    )
    record.append(folder / "records.jsonl", finished)
    return finished
