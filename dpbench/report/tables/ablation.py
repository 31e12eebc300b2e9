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
    none = comparison.find("none")
    full = scores_by_task(comparison.rows[none]) if none else {}
    retentions: dict[str, dict[BudgetRequest, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, records in comparison.rows.items():
        name, value = _variant(key.method, key.params), retention.average(comparison, scores_by_task(records), full)
        if name and value is not None and counted.is_complete(comparison, key):
            retentions[name][key.budget].append(value)
    return {name: {budget: _pool(values) for budget, values in row.items()} for name, row in retentions.items()}


def is_ablation(comparison: Comparison) -> bool:
    """Return True if a comparison has scorers that were trained in several ways."""
    return len({name for key in comparison.rows if (name := _variant(key.method, key.params))}) > 1


def _variant(method: str, params: str) -> str | None:
    checkpoint = json.loads(params).get("checkpoint")
    if method != "diffprune" or checkpoint is None:
        return None
    return re.sub(r"-\d+$", "", Path(checkpoint).name)


def _pool(values: list[float]) -> Pooled:
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
        Row((Cell(name), *(Cell(_text(row.get(b)), found[b].get(name, "")) for b in budgets)))
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


def _text(pooled: Pooled | None) -> str:
    if pooled is None:
        return number(None)
    return number(pooled.value) + (f" ± {pooled.half:.1f}" if pooled.half is not None else "")
