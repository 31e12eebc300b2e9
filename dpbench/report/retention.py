"""Average retention: the mean of score / unpruned score, in percent, over the benchmarks that count.

Every table, interval, figure and sentence takes it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from dpbench.report import counted
from dpbench.report.runs import Comparison, RowKey, scores_of

RETENTION = "Retention"


def retention(scores: Mapping[str, float], unpruned: Mapping[str, float]) -> float | None:
    """Return the mean over benchmarks of score / unpruned score in percent, or None without a common benchmark."""
    ratios = [100 * scores[name] / unpruned[name] for name in scores if unpruned.get(name)]
    return mean(ratios) if ratios else None


def averages(comparison: Comparison) -> dict[RowKey, float]:
    """Return the average retention, in percent, of every row that has a score on each benchmark that counts."""
    rows = {key: average(comparison, scores_of(rows)) for key, rows in comparison.rows.items()}
    return {key: value for key, value in rows.items() if value is not None and counted.is_complete(comparison, key)}


def average(
    comparison: Comparison, scores: Mapping[str, float], unpruned: Mapping[str, float] | None = None
) -> float | None:
    """Return the average retention, in percent, over the benchmarks that count, None without one.

    Args:
        comparison: decides which count.
        scores: of a row, by benchmark; one that is missing is left out.
        unpruned: on the same scale; None for the recorded scores of `none`.
    """
    none = comparison.find("none")
    if unpruned is None:
        unpruned = scores_of(comparison.rows[none]) if none else {}
    return retention({name: scores[name] for name in counted.find(comparison).tasks if name in scores}, unpruned)
