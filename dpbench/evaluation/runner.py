"""Run a manifest: load one backbone, answer what no journal holds yet, then score and record each finished cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
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

from dpbench.errors import DpbenchError
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.evaluation.plan import Outcome, Plan, plan
from dpbench.evaluation.scoring import AnsweredCell, finish, tidy
from dpbench.evaluation.sharding import WHOLE, Shard, join, turn
from dpbench.machine.device import keep_freed_memory, pick_device
from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.cell import Cell
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.schema import Manifest
from dpbench.storage import files
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
        data_root: where the benchmarks' data lies, or None for the hub's cache.
        device: "auto", "cpu" or "cuda".
        feature_cache: bytes of encoded images to keep for later questions about them.
        shard: this process's part of the samples; a part leaves journals to be merged, and no records.
        wait: wait for another process that holds this run's folder, instead of raising.
        console: where progress goes.

    Raises:
        ConfigError: another process holds this run's folder, nothing can be written there, or there is no such device.
        MissingError: weights or data are missing.
        StorageError: the disk is full or fails; what was written before is whole.
    """
    from dpbench.engine.feature_cache import FeatureCache

    console, device, folder = console or Console(stderr=True), pick_device(device), out / manifest.name
    plan(manifest, out, data_root)
    files.check_writable(folder)
    waiting = _printer(console) if wait else None
    with files.explain_disk_errors(folder), files.new_folder(folder), turn(folder, shard, waiting=waiting):
        planned = plan(manifest, out, data_root)
        console.print(f"{len(planned.pending)} cells to run, {len(planned.done)} done already")
        if not planned.pending:
            return Outcome(existing=planned.done)
        write_header(manifest, folder, device)
        if shard == WHOLE:
            for cell in planned.pending:
                join(folder, cell.id)
        failed = FailedCells(console)
        job = _load(manifest, planned, data_root, device, FeatureCache(feature_cache), shard, failed)
        added: list[Record] = []
        for name in _answer(job, manifest.protocol.batch_size, failed):
            if shard == WHOLE:
                added += _finish(job, name, failed, environment(device))
        if added:
            tidy(folder)
        return Outcome(tuple(added), planned.done, failed=failed.all, feature_cache=job.cache.counts)


def _finish(job: _Job, task: str, failed: FailedCells, found: Mapping[str, Any]) -> list[Record]:
    """Score and record a task's cells, except those that failed."""
    added: list[Record] = []
    for answered in job.answered(task):
        if answered.cell not in failed:
            with failed.catch(answered.cell):
                finished = finish(job.plan.folder, answered, job.built[task], found)
                added += [finished] if finished else []
    return added


def _printer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def write_header(manifest: Manifest, folder: Path, device: str) -> None:
    """Write `manifest.yaml` and `environment.json` next to the records."""
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    found = json.dumps({"versions": versions(), **environment(device)}, indent=2) + "\n"
    files.replace(folder / "manifest.yaml", text.encode())
    files.replace(folder / "environment.json", found.encode())


@dataclass(frozen=True, slots=True)
class _Job:
    """A run with everything loaded: its cells bound and, per task, the data and the requests this process answers."""

    plan: Plan
    backbone: Backbone
    cache: FeatureCache
    cells: Sequence[ActiveCell]
    built: Mapping[str, BuiltTask]
    mine: Mapping[str, Sequence[Request]]

    @property
    def num_answers(self) -> int:
        """Return how many answers the cells need from this process."""
        return sum(len(self.mine[active.cell.task]) for active in self.cells)

    def answered(self, task: str) -> Iterator[AnsweredCell]:
        """Yield a task's cells once they are answered."""
        for active in self.cells:
            if active.cell.task == task:
                yield AnsweredCell(active.cell, active.journal, self.built[task].requests)


def _load(
    manifest: Manifest,
    planned: Plan,
    data_root: Path | None,
    device: str,
    cache: FeatureCache,
    shard: Shard,
    failed: FailedCells,
) -> _Job:
    from dpbench.evaluation import answering

    console, active = failed.console, []
    if device == "cpu":
        keep_freed_memory()
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
        for cell in planned.pending:
            with failed.catch(cell, reraise=DpbenchError):
                active.append(answering.open_cell(cell, backbone, planned.folder, cache, shard))
    with console.status("loading the benchmarks"):
        built = build_tasks(manifest, planned.pending, data_root)
        mine = {
            name: [r for r in task.requests if shard == WHOLE or shard.owns(name, task.image_group(r))]
            for name, task in built.items()
        }
    return _Job(planned, backbone, cache, active, built, mine)


def _answer(job: _Job, batch_size: int | str, failed: FailedCells) -> Iterator[str]:
    """Answer all cells, one task after the other; yields each task that is done."""
    from dpbench.engine.encoding import Encoder
    from dpbench.evaluation import answering

    needs = answering.needs_of(job.backbone, job.cells)
    with _progress(failed.console) as bar:
        shown = bar.add_task("starting", total=job.num_answers)
        for name, task in job.built.items():
            group = [active for active in job.cells if active.cell.task == name]
            with closing(Encoder(job.backbone, task, job.cache, needs)) as encoder:
                work = (job.backbone, group, task, job.mine[name], batch_size, encoder)
                for done, label in answering.answer(*work, failed):
                    bar.update(shown, advance=done, description=label)
            yield name


def build_tasks(manifest: Manifest, pending: Iterable[Cell], data_root: Path | None) -> dict[str, BuiltTask]:
    """Load the data of the cells' tasks.

    Raises:
        MissingError: the data is missing.
    """
    from dpbench.tasks import lmms_eval_adapter

    limit, ocr = manifest.protocol.limit, manifest.protocol.ocr
    names = dict.fromkeys(cell.task for cell in pending)
    return {name: lmms_eval_adapter.build(name, data_root, limit=limit, ocr=ocr) for name in names}


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
