"""Whether the benchmarks' data is whole: files, revision, hashes, columns, rows, images."""

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
from dpbench.tasks.data.expected import Expected, expected, fits, kind
from dpbench.tasks.data.images import batches
from dpbench.tasks.data.origin import Origin
from dpbench.tasks.data.root import configs, data_files, folder

LISTED = 3
ANY = "any"
"""In place of a revision: whichever it is."""
"""Broken images of one file that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found of one split of one benchmark.

    Attributes:
        task: as in `dpbench.tasks.TASKS`.
        split: repository, config and split.
        origin: where the data says it came from, None where nobody wrote that down.
        num_files: parquet files.
        num_hashed: files whose hash is known and was compared.
        num_rows: rows in them.
        num_images: rows whose images were decoded.
        problems: one sentence each; empty if all is well.
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
class _Found:
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
        revision: the commit the data must be of, or the start of it; "any" for any, None for the one a task is pinned
            to, where the data says which it is.
        quick: decode a few images of each file instead of all.
        console: where progress goes.

    Raises:
        ConfigError: a name is unknown.
    """
    splits = [(name, config) for name in names or TASKS for config in configs(find(name))]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console or Console(stderr=True), transient=True) as bar:
        return [_split(name, config, data_root, revision, quick=quick, bar=bar) for name, config in splits]


def render(verdicts: Sequence[Verdict]) -> str:
    """Return the table of verdicts, and what is wrong below it."""
    rows = [
        (
            each.task,
            each.split,
            each.num_files,
            each.num_hashed,
            each.num_rows,
            each.num_images,
            each.origin.label if each.origin else "not recorded",
            "FAILED" if each.problems else "ok",
        )
        for each in verdicts
    ]
    headers = ("task", "split", "files", "hashes", "rows", "rows decoded", "revision", "verdict")
    problems = [
        f"{each.task}: {problem.removeprefix(f'task {each.task}: ')}" for each in verdicts for problem in each.problems
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
    wanted = expected(task, config, source)
    hashes = {path: sha for path in paths if (sha := wanted.sha256.get(path.relative_to(place).as_posix()))}
    found = [_file(path, wanted, quick=quick, bar=bar) for path in paths]
    num_rows = sum(each.num_rows for each in found)
    problems = _revision_problems(place, paths, source, _wanted(revision, wanted, source))
    problems += [_hash_problem(path, source) for path, sha in hashes.items() if _sha256(path) != sha]
    problems += chain.from_iterable(each.problems for each in found)
    if wanted.rows is not None and num_rows != wanted.rows:
        problems.append(f"{split} has {num_rows} rows in {place}, expected {wanted.rows}")
    if config == task.images and not problems:
        problems += _unmatched(name, data_root)
    return Verdict(
        task=name,
        split=split,
        origin=source,
        num_files=len(paths),
        num_hashed=len(hashes),
        num_rows=num_rows,
        num_images=sum(each.num_images for each in found),
        problems=tuple(problems),
    )


def _file(path: Path, wanted: Expected, *, quick: bool, bar: Bar) -> _Found:
    """Read one parquet file: its rows, its columns, its images."""
    num_rows = num_images = 0
    problems: list[str] = []
    job = bar.add_task(path.name, total=None)
    try:
        with pq.ParquetFile(path) as table:
            num_rows = table.metadata.num_rows
            problems += _column_problems(path, table.schema_arrow, wanted)
            broken = []
            for batch in batches(table, None if problems else wanted.images, quick=quick):
                broken += batch.broken()
                num_images += len(batch.values)
                bar.update(job, total=num_rows, completed=num_images)
            problems += [f"{path}: image of {each}" for each in broken[:LISTED]]
            problems += [f"{path}: {len(broken)} images are broken in all"] if len(broken) > LISTED else []
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:160]
        problems.append(f"{path} is truncated or no parquet file ({cause}); remove it and pull again")
    bar.remove_task(job)
    return _Found(num_rows, num_images, tuple(problems))


def _wanted(revision: str | None, wanted: Expected, source: Origin | None) -> str | None:
    """Return the revision that data must be of, or None; a mirror that says nothing is only held to what was asked."""
    if revision is not None:
        return None if revision == ANY else revision
    return wanted.revision if source is not None else None


def _revision_problems(place: Path, paths: Sequence[Path], source: Origin | None, wanted: str | None) -> list[str]:
    if source is None:
        return [f"wrong revision: {place} does not say which it is, wanted {wanted}"] if wanted else []
    problems = []
    if wanted and not source.revision.startswith(wanted):
        problems.append(f"wrong revision: {place} is {source.repository} at {source.revision}, wanted {wanted}")
    strangers = [path for path in paths if path.relative_to(place).as_posix() not in source.files]
    if strangers:
        problems.append(f"wrong revision: {strangers[0]} is none of the files of {source.label}; pull it again")
    return problems


def _hash_problem(path: Path, source: Origin | None) -> str:
    stated = f" of {source.label}" if source else ""
    return f"{path} has another SHA-256 than the file{stated}; remove it and pull again"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _column_problems(path: Path, schema: pa.Schema, wanted: Expected) -> list[str]:
    found = {field.name: kind(field.type) for field in schema}
    missing = [name for name in wanted.columns if name not in found]
    problems = [f"{path} has no column {name!r}; it has {', '.join(found)}" for name in missing]
    return problems + [
        f"{path}: column {name!r} is {found[name]}, expected {right}"
        for name, right in wanted.columns.items()
        if name in found and not fits(found[name], right)
    ]


def _unmatched(name: str, data_root: Path | None) -> list[str]:
    """Return what is wrong where questions name images that lie apart (GQA) and one is not there."""
    asked = _strings(data_files(name, data_root), "imageId")
    there = _strings(data_files(name, data_root, find(name).images), "id")
    lost = sorted(asked - there)
    return [f"{len(lost)} images that questions ask about are not there, {lost[0]!r} first"] if lost else []


def _strings(paths: Sequence[Path], column: str) -> set[str]:
    return set(chain.from_iterable(pq.read_table(path, columns=[column])[column].to_pylist() for path in paths))
