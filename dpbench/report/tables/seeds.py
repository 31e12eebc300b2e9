"""How far a row's numbers move with the seed, which only those of methods that draw random numbers do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev

from dpbench import tasks
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage.record import Record


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a number over seeds, or None if it is the same for all of them."""
    return stdev(values) if len(set(values)) > 1 else None


def scores_by_seed(records: Iterable[Record]) -> dict[int, dict[str, float]]:
    """Return a row's score per seed and benchmark, of the seeds that have every benchmark of the row."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for record in records:
        found[record.cell["seed"]][record.cell["task"]] = record.score
    most = max(map(len, found.values()), default=0)
    return {seed: scores for seed, scores in sorted(found.items()) if len(scores) == most}


def notes(comparison: Comparison, spreads: Mapping[RowKey, float | None]) -> Iterable[str]:
    """Yield how many seeds the table's numbers are means of, and how far they spread.

    Args:
        comparison: the table.
        spreads: the standard deviation of each row's retention over seeds.
    """
    seeds = [{record.cell["seed"] for record in records} for records in comparison.rows.values()]
    most = max(map(len, seeds))
    if most < 2:
        return
    yield f"Mean over {most} seeds{'' if all(len(row) == most for row in seeds) else ' where there are as many'}."
    if any(spreads.values()):
        yield f"± after a retention: standard deviation over seeds; of a single score {_largest(comparison)}."


def _largest(comparison: Comparison) -> str:
    """Return the largest standard deviation of one score over seeds, and where it is."""
    found = {}
    for key, records in comparison.rows.items():
        by_seed = scores_by_seed(records)
        for task in next(iter(by_seed.values()), {}):
            found[key, task] = spread([scores[task] for scores in by_seed.values()]) or 0.0
    key, task = max(found, key=lambda place: found[place])
    return f"up to {found[key, task]:.1f} ({tasks.ALL[task].title}, {key.label} at {key.budget.label})"
