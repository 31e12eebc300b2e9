"""The intervals of a comparison: every row against `none` and against `random` at its budget, cached by record hash."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpbench.budget import BudgetRequest
from dpbench.errors import StorageError
from dpbench.report import counted, statistics
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.statistics import Difference
from dpbench.storage import contributions, files
from dpbench.storage.contributions import Contribution
from dpbench.tasks import aggregators

VERSION = 4
"""Increase it when the same records would give other intervals, or the format of the cache file changes."""
REFERENCES = ("none", "random")
SIGNIFICANT = 0.05

_log = logging.getLogger(__name__)

Key = tuple[RowKey, str, str]
"""A row, its reference, and a benchmark or RETENTION."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Differences of a comparison's rows to their references.

    Attributes:
        differences: by row, reference and column, in points.
        notes: what is missing, and why.
    """

    differences: Mapping[Key, Difference]
    notes: tuple[str, ...] = ()

    def corrected(self, reference: str, *, of_retention: bool) -> dict[Key, float]:
        """Return Holm-corrected p-values: one family per table, retention apart from the benchmarks."""
        family = {
            key: difference.p
            for key, difference in self.differences.items()
            if key[1] == reference and (key[2] == RETENTION) == of_retention
        }
        return statistics.holm(family)

    def of_retention(self) -> dict[RowKey, tuple[float, float]]:
        """Return the 95 % interval of every row's average retention, in percent: 100 plus that of its difference."""
        return {
            key: (100 + difference.low, 100 + difference.high)
            for (key, reference, column), difference in self.differences.items()
            if reference == "none" and column == RETENTION
        }

    def like_random(self) -> frozenset[RowKey]:
        """Return the rows whose retention does not differ significantly from random's at their budget."""
        return frozenset(key[0] for key, p in self.corrected("random", of_retention=True).items() if p >= SIGNIFICANT)


def load_or_compute(comparison: Comparison, resamples: int = statistics.RESAMPLES) -> Intervals:
    """Return a comparison's intervals, from the cache if the same records were computed before.

    Raises:
        RecordError: a journal or packed file cannot be read.
    """
    path = _cache_folder() / f"{_hash(comparison, resamples)}.json"
    result = _read_cache(path)
    if result is None:
        result = compute(comparison, resamples)
        if result.differences:
            _write_cache(path, result)
    return result


@dataclass(frozen=True, slots=True)
class _Scores:
    """The scores from which differences are computed, by benchmark; R resamples.

    Attributes:
        plain: every row's score on the samples themselves, mean over seeds.
        resampled: every row's score on each resample, (R,), mean over seeds.
        num_images: images that the benchmark's samples ask about.
    """

    plain: Mapping[str, Mapping[RowKey, float]]
    resampled: Mapping[str, Mapping[RowKey, NDArray[np.float64]]]
    num_images: Mapping[str, int]


def compute(comparison: Comparison, resamples: int = statistics.RESAMPLES) -> Intervals:
    """Compute a comparison's intervals, without the cache."""
    cells, notes = load_usable(comparison)
    scores, names = _scores(comparison, cells, resamples), counted.find(comparison).tasks
    differences: dict[Key, Difference] = {}
    for key in comparison.rows:
        for reference in REFERENCES:
            other = comparison.find(reference, None if reference == "none" else key.budget)
            if other is not None and other != key and key.method != "none":
                columns = _differences(scores, key, other, comparison.find("none"), names)
                differences |= {(key, reference, column): difference for column, difference in columns.items()}
    return Intervals(differences, notes)


def _scores(comparison: Comparison, cells: Mapping[str, Contribution], resamples: int) -> _Scores:
    plain: dict[str, dict[RowKey, float]] = {}
    num_images: dict[str, int] = {}
    resampled = scores_by_task(comparison, cells, resamples)
    for task, rows in resampled.items():
        seeds = {key: [cells[record.cell_id] for record in comparison.of(key, task)] for key in rows}
        plain[task] = {key: float(np.mean([_score(cell) for cell in row])) for key, row in seeds.items()}
        num_images[task] = int(max(cell.layout.cluster_U.max() for row in seeds.values() for cell in row)) + 1
    return _Scores(plain, resampled, num_images)


def _differences(
    scores: _Scores, key: RowKey, other: RowKey, none: RowKey | None, count: Sequence[str]
) -> dict[str, Difference]:
    """Return a row's score minus another's, on the benchmarks that both have, and of their average retention.

    Args:
        scores: plain and resampled.
        key: the row.
        other: its reference.
        none: the unpruned model.
        count: benchmarks that count for retention.
    """
    common = [task for task, rows in scores.resampled.items() if key in rows and other in rows]
    columns: dict[str, Difference | None] = {}
    for task in common:
        # Both rows were scored on the same draws, so the subtraction is paired: what an image's difficulty adds to
        # both cancels out.
        delta_R = scores.resampled[task][key] - scores.resampled[task][other]
        value = scores.plain[task][key] - scores.plain[task][other]
        columns[task] = statistics.difference(value, delta_R, scores.num_images[task])
    # An average over fewer benchmarks than the table's would be another quantity: it has no interval.
    if none is not None and set(count) <= set(common):
        columns[RETENTION] = _retention(scores, key, other, none, count)
    return {column: difference for column, difference in columns.items() if difference}


def _retention(scores: _Scores, key: RowKey, other: RowKey, none: RowKey, used: Sequence[str]) -> Difference | None:
    """Return the difference of average retention over these benchmarks; None if the unpruned model's samples lack."""
    plain, resampled = scores.plain, scores.resampled
    if not used or any(none not in resampled[task] for task in used):
        return None
    value = float(np.mean([100 * (plain[task][key] - plain[task][other]) / plain[task][none] for task in used]))
    points_TR = np.stack([100 * (resampled[task][key] - resampled[task][other]) for task in used])
    unpruned_TR = np.stack([resampled[task][none] for task in used])
    # The unpruned score is resampled with the others: a share's denominator is as uncertain as its numerator. On a
    # resample that the unpruned model fails entirely a benchmark has no share and, as in `retention`, does not count.
    counts_TR = unpruned_TR > 0
    shares_TR = np.divide(points_TR, unpruned_TR, out=np.zeros_like(points_TR), where=counts_TR)
    num_R = counts_TR.sum(0)
    mean_R = np.divide(shares_TR.sum(0), num_R, out=np.full(len(num_R), np.nan), where=num_R > 0)
    return statistics.difference(value, mean_R, sum(scores.num_images[task] for task in used))


def scores_by_task(
    comparison: Comparison, cells: Mapping[str, Contribution], resamples: int
) -> dict[str, dict[RowKey, NDArray[np.float64]]]:
    """Return every row's score on the resamples of each benchmark, (R,), mean over seeds."""
    scores: dict[str, dict[RowKey, NDArray[np.float64]]] = {}
    for task in comparison.tasks:
        members = {
            record.cell_id: (key, cells[record.cell_id])
            for key in comparison.rows
            for record in comparison.of(key, task)
            if record.cell_id in cells
        }
        if not members:
            continue
        # Seeded by the images, not by the benchmark: benchmarks on the same images draw the same ones.
        seed = next(iter(members.values()))[1].layout.images
        drawn = statistics.resample({name: cell.sums() for name, (_, cell) in members.items()}, seed, resamples)
        rows: dict[RowKey, list[NDArray[np.float64]]] = defaultdict(list)
        for name, scores_R in drawn.items():
            rows[members[name][0]].append(scores_R)
        scores[task] = {key: np.mean(parts, axis=0) for key, parts in rows.items()}
    return scores


def _score(cell: Contribution) -> float:
    return float(aggregators.score(cell.sums())[0])


def load_usable(comparison: Comparison) -> tuple[dict[str, Contribution], tuple[str, ...]]:
    """Return the contributions that fit their record and the other cells of their benchmark, and notes on the rest."""
    cells: dict[str, Contribution] = {}
    for folder in comparison.folders:
        cells |= contributions.load(folder, comparison.records)
    good = {
        record.cell_id: cells[record.cell_id]
        for record in comparison.records
        if record.cell_id in cells and cells[record.cell_id].gives(record.score)
    }
    paired = _select_paired(comparison, good)
    # A row's seeds count together or not at all: a mean over some of them would be another row.
    paired = {
        record.cell_id: paired[record.cell_id]
        for key, rows in comparison.rows.items()
        for record in rows
        if all(other.cell_id in paired for other in comparison.of(key, record.cell["task"]))
    }
    total = len(comparison.records)
    return paired, tuple(_explain_missing(total, len(cells), len(good), len(paired)))


def _select_paired(comparison: Comparison, cells: Mapping[str, Contribution]) -> dict[str, Contribution]:
    """Keep, per benchmark, the cells with the most common set of samples."""
    paired: dict[str, Contribution] = {}
    for task in comparison.tasks:
        by_layout: dict[str, list[str]] = defaultdict(list)
        for record in comparison.records:
            if record.cell["task"] == task and record.cell_id in cells:
                by_layout[cells[record.cell_id].layout.id].append(record.cell_id)
        most: list[str] = max(by_layout.values(), key=len, default=[])
        paired |= {name: cells[name] for name in most}
    return paired


def _explain_missing(total: int, num_found: int, num_good: int, num_paired: int) -> Iterable[str]:
    if not num_found:
        yield (
            f"No intervals: there is no {contributions.NAME} and no samples/ in the run folder; "
            "copy them from where it ran."
        )
    elif num_found < total:
        yield f"No intervals for {total - num_found} of {total} cells: their samples are not in the run folder."
    if num_good < num_found:
        yield (
            f"No intervals for {num_found - num_good} cells whose samples do not give the recorded score; "
            "they were scored by another version: run them again."
        )
    if num_paired < num_good:
        yield f"No intervals for {num_good - num_paired} cells with other samples than the rest of their column."


def _hash(comparison: Comparison, resamples: int) -> str:
    rows = sorted((record.cell_id, record.score, record.num_samples, record.finished) for record in comparison.records)
    sources = sorted(contributions.stamp(folder, [row[0] for row in rows]) for folder in comparison.folders)
    text = json.dumps([VERSION, resamples, rows, sources, comparison.tasks])
    return sha256(text.encode()).hexdigest()[:32]


def _cache_folder() -> Path:
    """Return the user's cache folder for intervals: a run folder may be read-only."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpbench" / "intervals"


def _read_cache(path: Path) -> Intervals | None:
    """Return the content of a cache file, or None if it does not exist or is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        differences = {
            (_row(row), reference, column): Difference(**fields)
            for row, reference, column, fields in data["differences"]
        }
        return Intervals(differences, tuple(data["notes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is damaged (%s) and is computed again", path, error)
        return None


def _row(fields: Mapping[str, Any]) -> RowKey:
    return RowKey(BudgetRequest(**fields["budget"]), fields["method"], fields["params"])


def _write_cache(path: Path, result: Intervals) -> None:
    rows = [
        (asdict(row), reference, name, asdict(difference))
        for (row, reference, name), difference in result.differences.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, json.dumps({"differences": rows, "notes": result.notes}).encode())
    except (OSError, StorageError) as error:
        _log.warning("intervals are not cached: %s", error)
