"""What a run of one cell found: its score, with an interval and the unpruned score where they are known."""

from __future__ import annotations

from pathlib import Path

from dpbench import tasks
from dpbench.errors import RecordError
from dpbench.report import statistics
from dpbench.report.runs import SHARED, row_key
from dpbench.storage import contributions, record
from dpbench.storage.record import Record

HASHES = ("weights", "task", "data")
"""Fingerprints that must agree before two scores are set side by side."""


def describe(folder: Path, row: Record) -> str:
    """Return a sentence on a finished cell; the unpruned score is looked for in its run and in those beside it.

    Args:
        folder: of the run.
        row: the record of the cell.

    Raises:
        RecordError: a journal or packed file of the run cannot be read.
    """
    key, title = row_key(row.cell), tasks.ALL[row.cell["task"]].title
    text = f"{key.label} at {key.budget.label} on {title}: {row.score:.1f} of 100{_interval(folder, row)}"
    unpruned = None if row.cell["method"] == "none" else _find_unpruned(folder, row)
    beside = "" if unpruned is None else f"; unpruned {unpruned.score:.1f}"
    return f"{text}, {row.num_samples:,} questions{beside}."


def _interval(folder: Path, row: Record) -> str:
    """Return the score's 95 % interval over images; nothing where all questions are about one image."""
    cell = contributions.load(folder, [row]).get(row.cell_id)
    error = statistics.standard_error(cell.sums()) if cell and cell.gives(row.score) else None
    if error is None:
        return ""
    low, high = max(0.0, row.score - statistics.Z * error), min(100.0, row.score + statistics.Z * error)
    return f" [{low:.1f}, {high:.1f}]"


def _find_unpruned(folder: Path, row: Record) -> Record | None:
    """Return the newest record of `none` on the same benchmark, data and weights under the same protocol."""
    for place in (folder, *sorted(path for path in folder.parent.iterdir() if path != folder)):
        found = [other for other in _read(place) if other.cell["method"] == "none" and _is_comparable(row, other)]
        if found:
            return max(found, key=lambda other: other.finished)
    return None


def _read(folder: Path) -> list[Record]:
    """Return a run's records; none where they cannot be read, since another run's damage is not this one's."""
    try:
        return record.read(folder / "records.jsonl", Record)
    except RecordError:
        return []


def _is_comparable(row: Record, other: Record) -> bool:
    hashes = [[cell.get("fingerprints", {}).get(name) for name in HASHES] for cell in (row.cell, other.cell)]
    fields = [name for name in (*SHARED, "task", "seed") if name != "budget_kind"]
    return hashes[0] == hashes[1] and all(row.cell.get(name) == other.cell.get(name) for name in fields)
