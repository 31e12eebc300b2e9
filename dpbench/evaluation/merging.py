"""What several processes answered becomes one run: journals are joined, finished cells scored and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpbench.errors import ConfigError
from dpbench.evaluation import runner, sharding
from dpbench.evaluation.plan import Outcome, plan
from dpbench.evaluation.scoring import AnsweredCell, finish, tidy
from dpbench.manifest.reading import load_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import files
from dpbench.storage.record import Record


def manifest_of(folder: Path) -> Manifest:
    """Return what a run folder is a run of.

    Raises:
        ConfigError: it is no run folder.
    """
    path = folder / "manifest.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no manifest.yaml, so it is no run's folder; give results/<run name>")
    return load_manifest(path)


def merge(folder: Path, data_root: Path | None) -> Outcome:
    """Join the journals that shards left; score and record every cell whose samples are all answered.

    Args:
        folder: of the run, `results/<run name>`.
        data_root: where the benchmarks' data lies, or None for the hub's cache.

    Raises:
        ConfigError: it is no run folder, or a shard is still running.
        MissingError: weights or data are not there.
        StorageError: the disk is full or fails; what was written before is whole.
    """
    manifest = manifest_of(folder)
    added: list[Record] = []
    unfinished = []
    with files.explain_disk_errors(folder), sharding.turn(folder):
        planned = plan(manifest, folder.parent, data_root)
        built = runner.build_tasks(manifest, planned.pending, data_root)
        for cell in planned.pending:
            task = built[cell.task]
            answered = AnsweredCell(cell, sharding.join(folder, cell.id), task.requests)
            num_answers, num_requests = len(answered.answers), len(task.requests)
            if num_answers < num_requests:
                unfinished.append((cell.label, num_answers, num_requests))
            else:
                finished = finish(folder, answered, task, _environment(folder))
                added += [finished] if finished else []
        if added:
            tidy(folder)
    return Outcome(tuple(added), planned.done, tuple(unfinished))


def _environment(folder: Path) -> dict[str, Any]:
    """Return what the shards ran on, as the last of them left it."""
    found: dict[str, Any] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "versions"}


def run(manifest: Manifest, out: Path, data_root: Path | None, shard: sharding.Shard, **settings: Any) -> Outcome:
    """Run a manifest, or a shard of it; under a launcher, the first process merges what all have answered.

    Args:
        manifest: what to run.
        out: results go to `out/<manifest name>/`.
        data_root: where the benchmarks' data lies, or None for the hub's cache.
        shard: this process's part.
        settings: as `dpbench.evaluation.runner.run` takes them.

    Raises:
        DpbenchError: as `dpbench.evaluation.runner.run` and `merge` do.
    """
    if not sharding.launched():
        return runner.run(manifest, out, data_root, shard=shard, **settings)
    sharding.take_device()
    with sharding.together():
        answered = runner.run(manifest, out, data_root, shard=shard, **settings)
    if shard.number:
        return answered
    merged = merge(out / manifest.name, data_root)
    return replace(merged, failed=answered.failed, feature_cache=answered.feature_cache)
