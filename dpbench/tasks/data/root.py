"""Find the benchmarks' parquet files in a data root with the hub's layout, or in the hub's cache. Never the network."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from dpbench.errors import ConfigError, MissingError
from dpbench.machine import hub_cache
from dpbench.tasks import ORGANISATIONS, Task, find

SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet$")
"""The end of a parquet file's name: the hub numbers the files of a split."""


def configs(task: Task) -> tuple[str, ...]:
    """Return the folders that a benchmark reads in its repository: questions, then images if stored apart."""
    return (task.config, task.images) if task.images else (task.config,)


def pattern(task: Task, config: str) -> str:
    """Return the glob pattern of the parquet files of a benchmark's split in one of its folders."""
    return f"{config}/{task.split}-*.parquet"


def pull_command(name: str, data_root: Path | None) -> str:
    """Return the command that downloads a benchmark's data to where it is expected."""
    return f"dpbench data pull {name}" + (f" --to {data_root}" if data_root is not None else "")


def folder(name: str, data_root: Path | None, config: str | None = None) -> Path:
    """Return the folder of a benchmark's repository.

    Args:
        name: as in `dpbench.tasks.TASKS`.
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
        config: another folder of the same repository (GQA's images).

    Raises:
        MissingError: it has no file of the benchmark; the message says how to download them.
    """
    task = find(name)
    glob = pattern(task, config or task.config)
    if data_root is not None:
        places = [data_root / task.repository]
        where = str(places[0] / glob)
    else:
        places = [_snapshot(f"{name}/{task.repository}", task.revision, glob) for name in ORGANISATIONS]
        where = f"{task.repository}/{glob} in the hub's cache"
    for place in places:
        if any(place.glob(glob)):
            return place
    fetch = pull_command(name, data_root)
    others = _other_commits(task) if data_root is None else ""
    raise MissingError(
        f"task {name}: no file matches {where}{others}; fetch them with `{fetch}` or give another --data-root"
    )


def _other_commits(task: Task) -> str:
    """Return what the hub's cache holds of a benchmark's repository at other commits, as part of a sentence."""
    found = [hub_cache.commits(f"{name}/{task.repository}", "dataset") for name in ORGANISATIONS]
    commits = sorted(itertools.chain.from_iterable(found))
    return f", which has commit {', '.join(commits)}, while {task.revision or 'main'} is read" if commits else ""


def data_files(name: str, data_root: Path | None, config: str | None = None) -> list[Path]:
    """Return the parquet files of a benchmark's split, in order.

    Args:
        name: as in `dpbench.tasks.TASKS`.
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
        config: another folder of the same repository (GQA's images).

    Raises:
        MissingError: some or all are missing; the message says how to download them.
    """
    task = find(name)
    paths = sorted(folder(name, data_root, config).glob(pattern(task, config or task.config)))
    _check_shards(name, data_root, paths)
    return paths


def _check_shards(name: str, data_root: Path | None, paths: Sequence[Path]) -> None:
    """Raise if a file of a split is missing: the rest would load, and score, as a smaller benchmark."""
    numbered = [match for path in paths if (match := SHARD.search(path.name))]
    have = [(int(match[1]), int(match[2])) for match in numbered]
    fetch = pull_command(name, data_root)
    if len({total for _, total in have}) > 1 or len(set(have)) < len(have):
        listed = ", ".join(path.name for path in paths)
        raise MissingError(
            f"task {name}: files of several revisions are in {paths[0].parent} ({listed}); "
            f"remove that folder and fetch one revision with `{fetch}`"
        )
    if have and len(have) < have[0][1]:
        raise MissingError(
            f"task {name}: {len(have)} of {have[0][1]} files are in {paths[0].parent}; fetch the rest with `{fetch}`"
        )


def _snapshot(repository: str, revision: str | None, glob: str) -> Path:
    """Return the cached snapshot that has the files, or a folder that does not exist."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Without the pattern a snapshot with only the benchmark's own files counts as incomplete.
        snapshot = snapshot_download(
            repository, repo_type="dataset", revision=revision, local_files_only=True, allow_patterns=glob
        )
    except LocalEntryNotFoundError:
        return Path("nowhere")
    return Path(snapshot)


def toy_data_root() -> Path:
    """Return the mirror of the benchmarks inside the package."""
    return Path(str(files("dpbench"))) / "toy" / "data"


def require_root(requested: Path | None) -> Path | None:
    """Return the requested data root, else the one in DPBENCH_DATA, or None for the hub's cache.

    Raises:
        ConfigError: the folder does not exist.
    """
    if requested is None and "DPBENCH_DATA" in os.environ:
        requested = Path(os.environ["DPBENCH_DATA"])
    if requested is not None and not requested.is_dir():
        raise ConfigError(f"--data-root: there is no folder {requested}")
    return requested


def is_present(name: str, data_root: Path | None) -> bool:
    """Return True if all files of a benchmark exist, including images stored apart."""
    images = find(name).images
    try:
        for config in (None, images) if images else (None,):
            data_files(name, data_root, config)
    except MissingError:
        return False
    return True
