"""Check the benchmarks' data: files, revision, hashes, columns, rows, images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from tabulate import tabulate

from dpbench.errors import MissingError, RecordError
from dpbench.machine.progress_bar import Bar
from dpbench.tasks import TASKS, find
from dpbench.tasks.data import origin
from dpbench.tasks.data.expected import Expected, expected, is_kind, kind
from dpbench.tasks.data.images import batches
from dpbench.tasks.data.origin import Origin
from dpbench.tasks.data.root import configs, data_files, folder

LISTED = 3
"""Number of broken images of one file that are listed."""
ANY = "any"
"""Accepts every revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome for one split of one benchmark.

    Attributes:
        task: as in `dpbench.tasks.TASKS`.
        split: repository, config and split.
        origin: as recorded with the data, None if it is not.
        num_files: parquet files.
        num_hashed: files whose hash is known and was compared.
        num_rows: rows in them.
        num_images: rows whose images were decoded.
        problems: one sentence each; empty if everything is right.
    """

    task: str
    split: str
    origin: Origin | None = None
    num_files: int = 0
    num_hashed: int = 0
    num_rows: int = 0
    num_images: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _FileReport:
    num_rows: int
    num_images: int
    problems: tuple[str, ...]


def verify(
    names: Sequence[str],
    data_root: Path | None,
    *,
    revision: str | None = None,
    quick: bool = False,
    console: Console | None = None,
) -> list[Verdict]:
    """Check benchmarks' data and return a verdict per split.

    Args:
        names: as in `dpbench.tasks.TASKS`; none for all ten.
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
        revision: the required commit, or the start of it. "any" accepts every one. None requires the one that a task
            is pinned to, but accepts data without a recorded origin.
        quick: decode a few images of each file instead of all.
        console: shows progress.

    Raises:
        ConfigError: a name is unknown.
    """
    splits = [(name, config) for name in names or TASKS for config in configs(find(name))]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console or Console(stderr=True), transient=True) as bar:
        return [_split(name, config, data_root, revision, quick=quick, bar=bar) for name, config in splits]


def render(verdicts: Sequence[Verdict]) -> str:
    """Return a table of verdicts, with the problems below it."""
    rows = [
        (
            verdict.task,
            verdict.split,
            verdict.num_files,
            verdict.num_hashed,
            verdict.num_rows,
            verdict.num_images,
            verdict.origin.label if verdict.origin else "not recorded",
            "FAILED" if verdict.problems else "ok",
        )
        for verdict in verdicts
    ]
    headers = ("task", "split", "files", "hashes", "rows", "rows decoded", "revision", "verdict")
    problems = [
        f"{verdict.task}: {problem.removeprefix(f'task {verdict.task}: ')}"
        for verdict in verdicts
        for problem in verdict.problems
    ]
    return "\n".join([tabulate(rows, headers), *([""] if problems else []), *problems])


def _split(name: str, config: str, data_root: Path | None, revision: str | None, *, quick: bool, bar: Bar) -> Verdict:
    task = find(name)
    split = f"{task.repository}/{config}/{task.split}"
    try:
        place = folder(name, data_root, config)
        source = origin.read(place) if data_root is not None else origin.read_cache(place)
        paths = data_files(name, data_root, config)
    except (MissingError, RecordError) as error:
        return Verdict(task=name, split=split, problems=(str(error),))
    right = expected(task, config, source)
    hashes = {path: sha for path in paths if (sha := right.sha256.get(path.relative_to(place).as_posix()))}
    reports = [_check_file(path, right, quick=quick, bar=bar) for path in paths]
    num_rows = sum(report.num_rows for report in reports)
    problems = _revision_problems(place, paths, source, _required_revision(revision, right, source))
    problems += [_hash_problem(path, source) for path, sha in hashes.items() if _sha256(path) != sha]
    problems += chain.from_iterable(report.problems for report in reports)
    if right.rows is not None and num_rows != right.rows:
        problems.append(f"{split} has {num_rows} rows in {place}, expected {right.rows}")
    if config == task.images and not problems:
        problems += _unmatched(name, data_root)
    return Verdict(
        task=name,
        split=split,
        origin=source,
        num_files=len(paths),
        num_hashed=len(hashes),
        num_rows=num_rows,
        num_images=sum(report.num_images for report in reports),
        problems=tuple(problems),
    )


def _check_file(path: Path, right: Expected, *, quick: bool, bar: Bar) -> _FileReport:
    """Check one parquet file: its rows, columns and images."""
    num_rows = num_images = 0
    problems: list[str] = []
    job = bar.add_task(path.name, total=None)
    try:
        with pq.ParquetFile(path) as table:
            num_rows = table.metadata.num_rows
            problems += _column_problems(path, table.schema_arrow, right)
            broken = []
            for batch in batches(table, None if problems else right.images, quick=quick):
                broken += batch.find_broken()
                num_images += len(batch.values)
                bar.update(job, total=num_rows, completed=num_images)
            problems += [f"{path}: image of {row}" for row in broken[:LISTED]]
            problems += [f"{path}: {len(broken)} images are broken in all"] if len(broken) > LISTED else []
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:160]
        problems.append(f"{path} is truncated or not a parquet file ({cause}); remove it and pull again")
    bar.remove_task(job)
    return _FileReport(num_rows, num_images, tuple(problems))


def _required_revision(revision: str | None, right: Expected, source: Origin | None) -> str | None:
    """Return the revision that the data must have, or None; without an origin only a requested one is required."""
    if revision is not None:
        return None if revision == ANY else revision
    return right.revision if source is not None else None


def _revision_problems(place: Path, paths: Sequence[Path], source: Origin | None, required: str | None) -> list[str]:
    if source is None:
        return [f"wrong revision: {place} does not record its own, expected {required}"] if required else []
    problems = []
    if required and not source.revision.startswith(required):
        problems.append(f"wrong revision: {place} is {source.repository} at {source.revision}, expected {required}")
    strangers = [path for path in paths if path.relative_to(place).as_posix() not in source.files]
    if strangers:
        problems.append(f"wrong revision: {strangers[0]} is not one of the files of {source.label}; pull it again")
    return problems


def _hash_problem(path: Path, source: Origin | None) -> str:
    stated = f" of {source.label}" if source else ""
    return f"{path} does not have the SHA-256 of the file{stated}; remove it and pull again"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _column_problems(path: Path, schema: pa.Schema, right: Expected) -> list[str]:
    found = {field.name: kind(field.type) for field in schema}
    missing = [name for name in right.columns if name not in found]
    problems = [f"{path} has no column {name!r}; it has {', '.join(found)}" for name in missing]
    return problems + [
        f"{path}: column {name!r} is {found[name]}, expected {expected_kind}"
        for name, expected_kind in right.columns.items()
        if name in found and not is_kind(found[name], expected_kind)
    ]


def _unmatched(name: str, data_root: Path | None) -> list[str]:
    """Return the problem that questions (GQA) name images which are missing, if some do."""
    asked = _strings(data_files(name, data_root), "imageId")
    stored = _strings(data_files(name, data_root, find(name).images), "id")
    missing = sorted(asked - stored)
    return [f"{len(missing)} images that questions ask about are missing, {missing[0]!r} first"] if missing else []


def _strings(paths: Sequence[Path], column: str) -> set[str]:
    return set(chain.from_iterable(pq.read_table(path, columns=[column])[column].to_pylist() for path in paths))
