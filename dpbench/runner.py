"""One loaded backbone, many cells: answer what no journal holds yet, then score and record each finished cell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from dpbench import allocator, backbones, record, storage, subset
from dpbench.errors import ConfigError, DpbenchError
from dpbench.faults import Fault, Faults
from dpbench.fingerprint import fingerprints
from dpbench.finishing import Answered, finish, tidy
from dpbench.manifest import Cell, Manifest, cells, with_fingerprints
from dpbench.progress import Bar
from dpbench.record import Record
from dpbench.sharding import WHOLE, Shard, join, turn
from dpbench.subset import Hard

if TYPE_CHECKING:
    from dpbench.answering import Running
    from dpbench.backbones.base import Backbone
    from dpbench.feature_cache import FeatureCache
    from dpbench.lmms import BuiltTask, Request

FAILURES_ALLOWED = 0.01
"""Share of a cell's samples that may have no answer."""
FEATURE_CACHE = 4 << 30
"""Bytes of encoded images that are kept by default."""


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
    """What a run did.

    Attributes:
        added: the records it added, in order.
        found: the records that were there.
        unfinished: per cell whose samples are not all answered, its label, how many are and how many there are.
        broken: the cells that failed, and why; they have no record.
        feature_cache: images that came from the feature cache ("hits") and images that were "encoded" by this process.
    """

    added: tuple[Record, ...] = ()
    found: tuple[Record, ...] = ()
    unfinished: tuple[tuple[str, int, int], ...] = ()
    broken: tuple[Fault, ...] = ()
    feature_cache: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Return how many samples of the manifest's cells have no answer."""
        return sum(each.num_failed for each in (*self.added, *self.found))

    @property
    def failed(self) -> bool:
        """Tell whether a cell failed or is not finished, or has too few answers for its score to be trusted."""
        shares = [each.num_failed / each.num_samples for each in (*self.added, *self.found)]
        return bool(self.unfinished or self.broken) or any(share > FAILURES_ALLOWED for share in shares)


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
    manifest: Manifest,
    out: Path,
    data_root: Path | None,
    *,
    device: str = "auto",
    feature_cache: int = FEATURE_CACHE,
    shard: Shard = WHOLE,
    wait: bool = False,
    sample_timeout: float | None = None,
    console: Console | None = None,
) -> Outcome:
    """Run every cell of a manifest that has no record yet; a cell that fails does not keep the others from it.

    Args:
        manifest: what to run.
        out: results go to `out/<manifest name>/`.
        data_root: where the benchmarks' data lies, or None for the hub's cache.
        device: "auto", "cpu" or "cuda".
        feature_cache: bytes of encoded images to keep for later questions about them.
        shard: which samples are this process's; a part of them leaves journals to be merged, and no records.
        wait: for a process that holds this run's folder; else it is an error.
        sample_timeout: seconds after which a sample is given up; None waits for ever.
        console: where progress goes.

    Raises:
        ConfigError: another process holds this run's folder, nothing can be written there, or the device is not there.
        MissingError: weights or data are not there.
        StorageError: the disk is full or fails; what was written before is whole.
    """
    from dpbench.feature_cache import FeatureCache
    from dpbench.measure.environment import environment

    console, device, folder = console or Console(stderr=True), pick_device(device), out / manifest.name
    plan(manifest, out, data_root)
    storage.check_writable(folder)
    waiting = _said(console) if wait else None
    with storage.writing(folder), storage.made(folder), turn(folder, shard, waiting=waiting):
        planned = plan(manifest, out, data_root)
        console.print(f"{len(planned.pending)} cells to run, {len(planned.done)} done already")
        if not planned.pending:
            return Outcome(found=planned.done)
        hard = subset.hard(folder, planned.pending, data_root)
        write_header(manifest, folder, device)
        if shard == WHOLE:
            _gather(folder, planned.pending, hard)
        faults = Faults(console)
        job = _load(manifest, planned, hard, data_root, device, FeatureCache(feature_cache), shard, faults)
        added: list[Record] = []
        for name in _answer(job, manifest.protocol.batch_size, faults, sample_timeout):
            if shard == WHOLE:
                added += _finished(job, name, faults, environment(device))
        if added:
            tidy(folder)
        return Outcome(tuple(added), planned.done, broken=faults.found, feature_cache=job.cache.counts)


def _gather(folder: Path, pending: Iterable[Cell], hard: Hard) -> None:
    """Join what shards have answered of each cell, and for a subset what the whole cell has."""
    for cell in pending:
        journal = join(folder, cell.id)
        if cell.subset:
            known = subset.known_answers(folder, cell, hard[cell.id])
            journal.append(each for each in known if each.key not in journal.answers)


def _finished(job: _Job, task: str, faults: Faults, found: Mapping[str, Any]) -> list[Record]:
    """Score and record a task's cells, those that failed left out."""
    added: list[Record] = []
    for each in job.answered(task):
        if each.cell not in faults:
            with faults.of(each.cell):
                done = finish(job.plan.folder, each, job.built[task], found)
                added += [done] if done else []
    return added


def _said(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


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


def write_header(manifest: Manifest, folder: Path, device: str) -> None:
    """Leave beside the records what is run and on what."""
    from dpbench.measure.environment import environment, versions

    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    found = json.dumps({"versions": versions(), **environment(device)}, indent=2) + "\n"
    for name, content in {"manifest.yaml": text, "environment.json": found}.items():
        partial = folder / f"{name}.{os.getpid()}"  # shards write the same at the same time
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)


@dataclass(frozen=True, slots=True)
class _Job:
    """A run with everything loaded: its cells bound and, per task, the data and the requests this process answers."""

    plan: Plan
    backbone: Backbone
    cache: FeatureCache
    running: Sequence[Running]
    built: Mapping[str, BuiltTask]
    mine: Mapping[str, Sequence[Request]]

    @property
    def num_answers(self) -> int:
        """Return how many answers the cells need of this process."""
        return sum(len(each.samples(self.mine[each.cell.task])) for each in self.running)

    def answered(self, task: str) -> Iterator[Answered]:
        """Yield the cells of a task, once they are answered, that have samples at all."""
        for each in self.running:
            samples = each.samples(self.built[task].requests)
            if each.cell.task == task and samples:
                yield Answered(each.cell, each.journal, samples)


def _load(
    manifest: Manifest,
    planned: Plan,
    hard: Hard,
    data_root: Path | None,
    device: str,
    cache: FeatureCache,
    shard: Shard,
    faults: Faults,
) -> _Job:
    from dpbench import answering

    console, running = faults.console, []
    if device == "cpu":
        allocator.keep_freed()
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
        for cell in planned.pending:
            with faults.of(cell, refuse=DpbenchError):
                running.append(answering.start(cell, backbone, planned.folder, cache, shard, hard.get(cell.id)))
    with console.status("loading the benchmarks"):
        built = build_tasks(manifest, planned.pending, data_root)
        mine = {
            name: [each for each in task.requests if shard == WHOLE or shard.owns(name, task.image_group(each))]
            for name, task in built.items()
        }
    return _Job(planned, backbone, cache, running, built, mine)


def _answer(job: _Job, batch_size: int | str, faults: Faults, sample_timeout: float | None) -> Iterator[str]:
    """Answer all cells of one task after the other; yields each task that is done."""
    from dpbench import answering
    from dpbench.encoding import Encoder
    from dpbench.patience import Patience

    needs, patience = answering.needs_of(job.backbone, job.running), Patience(sample_timeout, job.backbone.model)
    with _progress(faults.console) as bar:
        shown = bar.add_task("starting", total=job.num_answers)
        for name, task in job.built.items():
            group = [each for each in job.running if each.cell.task == name]
            with closing(Encoder(job.backbone, task, job.cache, needs, ahead=sample_timeout is None)) as encoder:
                work = (job.backbone, group, task, job.mine[name], batch_size, encoder)
                for done, label in answering.answer(*work, faults, patience):
                    bar.update(shown, advance=done, description=label)
            yield name


def build_tasks(manifest: Manifest, pending: Iterable[Cell], data_root: Path | None) -> dict[str, BuiltTask]:
    """Load the data of the cells' tasks.

    Raises:
        MissingError: it is not there.
    """
    from dpbench import lmms

    limit, ocr = manifest.protocol.limit, manifest.protocol.ocr
    return {
        name: lmms.build(name, data_root, limit=limit, ocr=ocr) for name in dict.fromkeys(cell.task for cell in pending)
    }


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


def _progress(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples,"),
        RateColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        console=console,
    )
