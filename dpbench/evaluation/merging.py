"""Merge what several processes answered into one run: join journals, then score and record complete cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from dpbench.errors import ConfigError
from dpbench.evaluation import runner, sharding
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.evaluation.outcome import Outcome
from dpbench.evaluation.plan import plan
from dpbench.evaluation.scoring import CellAnswers, finish, sort_and_pack_records
from dpbench.manifest.reading import load_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import files
from dpbench.storage.record import Record


def load_run_manifest(folder: Path) -> Manifest:
    """Load the manifest that a run left in its folder.

    Raises:
        ConfigError: it is not the folder of a run.
    """
    path = folder / "manifest.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no manifest.yaml, so it is not a run's folder; give results/<run name>")
    return load_manifest(path)


def merge(folder: Path, data_root: Path | None) -> Outcome:
    """Join the journals that shards wrote; score and record every cell whose samples are all answered.

    A cell that cannot be scored, since no sample fits into the model's context, does not stop the others.

    Args:
        folder: of the run, `results/<run name>`.
        data_root: folder with the benchmarks' data, or None for the hub's cache.

    Raises:
        ConfigError: it is not the folder of a run, or a shard is still running.
        MissingError: weights or data are missing.
        StorageError: the disk is full or fails; everything written before is intact.
    """
    manifest = load_run_manifest(folder)
    added: list[Record] = []
    unfinished, failed = [], FailedCells(Console(stderr=True))
    with files.explain_disk_errors(folder), sharding.hold_folder(folder):
        planned = plan(manifest, folder.parent, data_root)
        for part in planned.parts():
            built_tasks = runner.build_tasks(part)
            for cell in part.pending:
                task = built_tasks[cell.task]
                answered = CellAnswers(cell, sharding.join_journals(folder, cell.id), task.requests)
                num_answers, num_requests = len(answered.answers), len(task.requests)
                if num_answers < num_requests:
                    unfinished.append((cell.label, num_answers, num_requests))
                    continue
                with failed.catch(cell):
                    record = finish(folder, answered, task, _load_environment(folder))
                    added += [record] if record else []
        if added:
            sort_and_pack_records(folder)
    return Outcome(tuple(added), planned.done, tuple(unfinished), failed.all)


def _load_environment(folder: Path) -> dict[str, Any]:
    """Return the environment that the last shard wrote, without software versions, which a record holds apart."""
    environment: dict[str, Any] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return {name: value for name, value in environment.items() if name != "versions"}
