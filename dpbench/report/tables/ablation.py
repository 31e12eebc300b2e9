"""The ablation table: ways to train the scorer, seeds pooled, as Table 5 of the DiffPrune paper."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.report import counted, marks, retention
from dpbench.report.runs import Comparison, largest_first, scores_of
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import heading
from dpbench.report.tables.table import Cell, Row, Section, number
from dpbench.storage.record import Record


@dataclass(frozen=True, slots=True)
class Pooled:
    """Average retention of one variant at one budget over its trainings, in percent.

    Attributes:
        value: mean.
        half: half of the 95 % interval over trainings (Student's t), None where there is one training.
        num_seeds: trainings.
    """

    value: float
    half: float | None
    num_seeds: int


def variants(
    comparison: Comparison, scores_by_task: Callable[[Iterable[Record]], dict[str, float]] = scores_of
) -> dict[str, dict[BudgetRequest, Pooled]]:
    """Return retention per variant and budget; a variant is the name of a scorer's folder without its seed's number.

    Args:
        comparison: with scorers trained in several ways.
        scores_by_task: reads a row's scores out of its records.
    """
    retentions = by_scorer(comparison, scores_by_task)
    return {
        name: {budget: pool(list(values.values())) for budget, values in row.items()}
        for name, row in retentions.items()
    }


def by_scorer(
    comparison: Comparison, scores_by_task: Callable[[Iterable[Record]], dict[str, float]] = scores_of
) -> dict[str, dict[BudgetRequest, dict[str, float]]]:
    """Return retention per variant and budget, by the name of the scorer's folder, of rows with every benchmark.

    Args:
        comparison: with scorers trained in several ways.
        scores_by_task: reads a row's scores out of its records.
    """
    none = comparison.find("none")
    full = scores_by_task(comparison.rows[none]) if none else {}
    found: dict[str, dict[BudgetRequest, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, records in comparison.rows.items():
        scorer = _scorer(key.method, key.params)
        value = retention.average(comparison, scores_by_task(records), full)
        if scorer and value is not None and counted.is_complete(comparison, key):
            found[variant_of(scorer)][key.budget][scorer] = value
    return found


def is_ablation(comparison: Comparison) -> bool:
    """Return True if a comparison has scorers that were trained in several ways."""
    scorers = {_scorer(key.method, key.params) for key in comparison.rows}
    return len({variant_of(scorer) for scorer in scorers if scorer}) > 1


def variant_of(scorer: str) -> str:
    """Return the way a scorer was trained: its folder's name without the seed's number."""
    return re.sub(r"-\d+$", "", scorer)


def _scorer(method: str, params: str) -> str | None:
    """Return the name of a scorer's folder; None for other methods and for the shipped scorer."""
    checkpoint = json.loads(params).get("checkpoint")
    return None if method != "diffprune" or checkpoint is None else Path(checkpoint).name


def pool(values: list[float]) -> Pooled:
    """Return the mean of values of several trainings, with its 95 % interval (Student's t)."""
    if len(values) < 2:
        return Pooled(values[0], None, len(values))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Pooled(mean(values), half, len(values))


def section(comparison: Comparison) -> Section:
    """Return the table: variants by budgets, the smallest budget first as in the paper."""
    rows = variants(comparison)
    budgets = sorted({budget for row in rows.values() for budget in row}, key=largest_first, reverse=True)
    found = {b: marks.rank({name: row[b].value if b in row else None for name, row in rows.items()}) for b in budgets}
    columns = ("Variant", *(f"Keep {b.keep}" if b.keep is not None else b.label for b in budgets))
    lines = [
        Row((Cell(name), *(Cell(text(row.get(b)), found[b].get(name, "")) for b in budgets)))
        for name, row in rows.items()
    ]
    numbers = [
        {
            "Variant": name,
            "Budget": b.label,
            "Retention": pooled_note.value,
            "Half width": pooled_note.half,
            "Seeds": pooled_note.num_seeds,
        }
        for name, row in rows.items()
        for b, pooled_note in row.items()
    ]
    count = counted.find(comparison)
    titles = ", ".join(tasks.ALL[name].title for name in count.tasks)
    seeds = {pooled_note.num_seeds for row in rows.values() for pooled_note in row.values()}
    pooled_note = f"Mean and 95 % interval (Student's t) over {'-'.join(map(str, sorted(seeds)))} trainings a variant."
    notes = (
        f"Average retention in percent, {count.scope}: {titles}.",
        *count.notes,
        *((pooled_note,) if max(seeds, default=1) > 1 else ()),
    )
    return Section(f"Ablation: {heading(comparison)}", frame_of(numbers), notes, columns, tuple(lines), "ablation")


def text(pooled: Pooled | None) -> str:
    """Return a pooled value as tables show it."""
    if pooled is None:
        return number(None)
    return number(pooled.value) + (f" ± {pooled.half:.1f}" if pooled.half is not None else "")
