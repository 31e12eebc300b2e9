"""Which benchmarks of a comparison count for its average retention, and why the others do not.

A share of an unpruned score says nothing where that score is what guessing gives, or rests on a handful of questions:
such a benchmark is shown and left out of the average, for all rows of a table alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from pathlib import Path

from dpbench import tasks
from dpbench.report import statistics
from dpbench.report.runs import Comparison, RowKey, scores_of
from dpbench.storage import contributions
from dpbench.storage.contributions import Contribution
from dpbench.storage.record import Record

MIN_UNITS = 20
"""Questions, MME pairs or MMBench circles below which a benchmark does not count."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The benchmarks of a comparison.

    Attributes:
        tasks: those that count for retention, in the paper's order.
        left_out: why each other one does not, by benchmark.
    """

    tasks: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def scope(self) -> str:
        """Return over how many benchmarks an average is: mean of 9 of 10 benchmarks, mean of all 10 benchmarks."""
        num = len(self.tasks) + len(self.left_out)
        if num > 1 and not self.left_out:
            return f"mean of {'both' if num == 2 else f'all {num}'} benchmarks"
        return f"mean of {len(self.tasks)} of {num} benchmark{'' if num == 1 else 's'}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on the benchmarks that are left out; nothing if all count."""
        reasons = "; ".join(f"{tasks.ALL[name].title} ({why})" for name, why in self.left_out.items())
        return (f"Shown but left out of the average, for all rows: {reasons}.",) if reasons else ()


@dataclass(frozen=True, slots=True)
class Unpruned:
    """What the unpruned model scored on a benchmark.

    Attributes:
        score: 0-100.
        num_units: questions, MME pairs or MMBench circles.
        half: half the width of the score's 95 % interval, in points; None if all are about one image.
    """

    score: float
    num_units: int
    half: float | None


def find(comparison: Comparison) -> Counted:
    """Return which benchmarks count: those of at least `MIN_UNITS` units, with an unpruned score clearly above chance.

    Raises:
        RecordError: a journal or packed file cannot be read.
    """
    unpruned = measure_unpruned(comparison)
    left_out = {name: why for name in comparison.tasks if (why := why_not(name, unpruned.get(name)))}
    return Counted(tuple(name for name in comparison.tasks if name not in left_out), left_out)


def is_complete(comparison: Comparison, key: RowKey) -> bool:
    """Return True if a row has every benchmark that counts; where none does, every benchmark that any row has."""
    needed = set(find(comparison).tasks) or {record.cell["task"] for record in comparison.records}
    return needed <= set(scores_of(comparison.rows[key]))


def why_not(name: str, unpruned: Unpruned | None) -> str | None:
    """Return why a benchmark does not count for retention, or None if it counts.

    Args:
        name: the benchmark.
        unpruned: what the unpruned model scored on it; None if it has no score.
    """
    benchmark = tasks.ALL[name]
    if unpruned is None:
        return "no unpruned score"
    if unpruned.num_units < MIN_UNITS:
        return f"{unpruned.num_units} {benchmark.units}, fewer than {MIN_UNITS}"
    if unpruned.half is None:
        return "all questions are about one image"
    if unpruned.score - unpruned.half <= benchmark.chance:
        return (
            f"unpruned {unpruned.score:.1f} ± {unpruned.half:.1f} is not clearly above chance, {benchmark.chance:.1f}"
        )
    return None


def measure_unpruned(comparison: Comparison) -> Mapping[str, Unpruned]:
    """Return the unpruned model's score on each benchmark, with its units and interval.

    From the samples where they are; else the score is taken as a share of independent units, whose number follows from
    the number of samples.
    """
    none = comparison.find("none")
    records = comparison.rows[none] if none else ()
    ids = tuple((record.cell_id, record.score, record.num_samples) for record in records)
    stamps = tuple(contributions.stamp(folder, [row.cell_id for row in records]) for folder in comparison.folders)
    return _measure(_Source(comparison.folders, ids, stamps, records))


@dataclass(frozen=True)
class _Source:
    """The files that unpruned scores rest on; equal while no file and no record changes."""

    folders: tuple[Path, ...]
    ids: tuple[tuple[str, float, int], ...]
    stamps: tuple[tuple[int, ...], ...]
    records: tuple[Record, ...] = field(compare=False)


@lru_cache(maxsize=64)
def _measure(source: _Source) -> Mapping[str, Unpruned]:
    cells: dict[str, Contribution] = {}
    for folder in source.folders:
        cells |= contributions.load(folder, source.records)
    found: dict[str, Unpruned] = {}
    for name, score in scores_of(source.records).items():
        first = min((row for row in source.records if row.cell["task"] == name), key=lambda row: row.cell["seed"])
        cell = cells.get(first.cell_id)
        # Samples that do not give the recorded score were scored by other rules and say nothing of it.
        found[name] = _by_images(score, cell) if cell and cell.gives(first.score) else _by_number(score, first)
    return found


def _by_images(score: float, cell: Contribution) -> Unpruned:
    error = statistics.standard_error(cell.sums())
    return Unpruned(score, len(cell.layout.unit_U), None if error is None else statistics.Z * error)


def _by_number(score: float, record: Record) -> Unpruned:
    num_units = record.num_samples // tasks.ALL[record.cell["task"]].samples_per_unit
    share = min(max(score / 100, 0.0), 1.0)
    half = 100 * statistics.Z * sqrt(share * (1 - share) / num_units) if num_units else None
    return Unpruned(score, num_units, half)
