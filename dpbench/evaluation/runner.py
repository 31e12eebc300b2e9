"""Run a manifest: load one backbone, answer the samples no journal holds, then score and record finished cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from dpbench.errors import DpbenchError
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.evaluation.outcome import Outcome
from dpbench.evaluation.plan import Plan, plan
from dpbench.evaluation.scoring import CellAnswers, finish, sort_and_pack_records
from dpbench.evaluation.sharding import WHOLE, Shard, hold_folder, join_journals
from dpbench.machine.device import keep_freed_memory, pick_device
from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.schema import Manifest
from dpbench.storage import files, plain_yaml
from dpbench.storage.record import Record

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone
    from dpbench.engine.feature_cache import FeatureCache
    from dpbench.evaluation.answering import ActiveCell
    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request

FEATURE_CACHE = 4 << 30
"""Bytes of encoded images kept by default."""


def run(
    manifest: Manifest,
    out: Path,
    data_root: Path | None,
    *,
    device: str = "auto",
    feature_cache: int = FEATURE_CACHE,
    shard: Shard = WHOLE,
    wait: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Run every cell of a manifest that has no record yet; a cell that fails does not stop the others.

    Args:
        manifest: what to run.
        out: results go to `out/<manifest name>/`.
        data_root: folder with the benchmarks' data, or None for the hub's cache.
        device: "auto", "cpu" or "cuda".
        feature_cache: bytes of encoded images to keep for later questions about them.
        shard: this process's part of the samples; a part writes journals, which are merged later, and no records.
        wait: wait for another process that holds this run's folder, instead of raising.
        console: where progress goes.

    Raises:
        ConfigError: another process holds the run's folder, the folder is not writable, or the device does not exist.
        MissingError: weights or data are missing.
        StorageError: the disk is full or fails; everything written before is intact.
    """
    from dpbench.engine.feature_cache import FeatureCache

    console, device, folder = console or Console(stderr=True), pick_device(device), out / manifest.name
    plan(manifest, out, data_root)
    files.check_writable(folder)
    notify = _build_printer(console) if wait else None
    with files.explain_disk_errors(folder), files.new_folder(folder), hold_folder(folder, shard, notify=notify):
        planned = plan(manifest, out, data_root)
        console.print(f"{len(planned.pending)} cells to run, {len(planned.done)} already done")
        if not planned.pending:
            return Outcome(existing=planned.done)
        write_header(manifest, folder, device)
        if shard == WHOLE:
            for cell in planned.pending:
                join_journals(folder, cell.id)
        failed, cache = FailedCells(console), FeatureCache(feature_cache)
        added: list[Record] = []
        for part in planned.parts():
            cache.clear()  # another backbone encodes the same images differently
            job = _load_job(part, device, shard, cache, failed)
            for task in _answer(job, failed):
                if shard == WHOLE:
                    added += _finish(job, task, failed, environment(device))
        if added:
            sort_and_pack_records(folder)
        return Outcome(tuple(added), planned.done, failed=failed.all, feature_cache=cache.counts)


def _finish(job: _Job, task: str, failed: FailedCells, machine: Mapping[str, Any]) -> list[Record]:
    """Score and record a task's cells, except those that failed."""
    added: list[Record] = []
    for answered in job.answered(task):
        if answered.cell not in failed:
            with failed.catch(answered.cell):
                record = finish(job.plan.folder, answered, job.tasks[task], machine)
                added += [record] if record else []
    return added


def _build_printer(console: Console) -> Callable[[str], None]:
    return lambda message: console.print(message, markup=False, highlight=False, soft_wrap=True)


def write_header(manifest: Manifest, folder: Path, device: str) -> None:
    """Write `manifest.yaml` and `environment.json` next to the records."""
    text = plain_yaml.dump(manifest.model_dump(mode="json"))
    machine = json.dumps({"versions": versions(), **environment(device)}, indent=2) + "\n"
    files.replace(folder / "manifest.yaml", text.encode())
    files.replace(folder / "environment.json", machine.encode())


@dataclass(frozen=True, slots=True)
class _Job:
    """A run with everything loaded.

    Attributes:
        plan: what is run.
        backbone: answers.
        cache: encoded images.
        cells: the pending cells, except those whose method cannot run.
        tasks: per task, its data.
        requests: per task, what this process answers.
    """

    plan: Plan
    backbone: Backbone
    cache: FeatureCache
    cells: Sequence[ActiveCell]
    tasks: Mapping[str, BuiltTask]
    requests: Mapping[str, Sequence[Request]]

    @property
    def num_answers(self) -> int:
        """Return how many answers the cells need from this process."""
        return sum(len(self.requests[active.cell.task]) for active in self.cells)

    def answered(self, task: str) -> Iterator[CellAnswers]:
        """Yield a task's cells, to be called when all are answered."""
        for active in self.cells:
            if active.cell.task == task:
                yield CellAnswers(active.cell, active.journal, self.tasks[task].requests)


def _load_job(planned: Plan, device: str, shard: Shard, cache: FeatureCache, failed: FailedCells) -> _Job:
    if device == "cpu":
        keep_freed_memory()
    with failed.console.status(f"loading {planned.manifest.backbone.name}"):
        backbone = load_backbone(planned.manifest, device)
        cells = _open_cells(planned, backbone, shard, cache, failed)
    with failed.console.status("loading the benchmarks"):
        tasks = build_tasks(planned)
        requests = {name: _select_requests(task, shard) for name, task in tasks.items()}
    return _Job(planned, backbone, cache, cells, tasks, requests)


def _open_cells(
    planned: Plan, backbone: Backbone, shard: Shard, cache: FeatureCache, failed: FailedCells
) -> list[ActiveCell]:
    """Bind the pending cells' methods; a method that cannot be bound fails its cell only."""
    from dpbench.evaluation import answering

    cells = []
    for cell in planned.pending:
        with failed.catch(cell, reraise=DpbenchError):
            cells.append(answering.open_cell(cell, backbone, planned.folder, cache, shard))
    return cells


def _select_requests(task: BuiltTask, shard: Shard) -> list[Request]:
    """Return the requests of a task that a shard answers."""
    if shard == WHOLE:
        return list(task.requests)
    return [request for request in task.requests if shard.owns(task.name, task.image_group(request))]


def _answer(job: _Job, failed: FailedCells) -> Iterator[str]:
    """Answer all cells, one task after the other; yields each task that is done."""
    from dpbench.engine.encoding import Encoder
    from dpbench.evaluation import answering

    signals = answering.needs_of(job.backbone, job.cells)
    batch_size = job.plan.manifest.protocol.batch_size
    with _build_bar(failed.console) as bar:
        row = bar.add_task("starting", total=job.num_answers)
        for name, task in job.tasks.items():
            group = [active for active in job.cells if active.cell.task == name]
            with closing(Encoder(job.backbone, task, job.cache, signals)) as encoder:
                work = (job.backbone, group, task, job.requests[name], batch_size, encoder)
                for num_done, label in answering.answer(*work, failed):
                    bar.update(row, advance=num_done, description=label)
            yield name


def build_tasks(planned: Plan) -> dict[str, BuiltTask]:
    """Load the data of the pending cells' tasks.

    Raises:
        MissingError: the data is missing.
    """
    from dpbench.tasks import lmms_eval_adapter

    protocol = planned.manifest.resolved_protocol()
    names = dict.fromkeys(cell.task for cell in planned.pending)
    return {
        name: lmms_eval_adapter.build(
            name,
            planned.data_root,
            limit=protocol.limit,
            ocr=bool(protocol.ocr),
            wording=protocol.wording or "lmms-eval",
            reading=protocol.reading or "first-word",
        )
        for name in names
    }


class RateColumn(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty until it is known."""
        return Text(f"{task.speed:.1f}/s, left:" if task.speed else "")


def _build_bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples,"),
        RateColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        console=console,
    )
