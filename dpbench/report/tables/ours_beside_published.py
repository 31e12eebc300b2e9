"""Our records beside the paper's tables: theirs, ours, and the difference where both are the same quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dpbench import backbones
from dpbench.report import counted
from dpbench.report.retention import retention
from dpbench.report.runs import Comparison, RowKey, scores_of, unpruned_tokens
from dpbench.report.tables import ablation, published
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.same_quantity import (
    gpu_of,
    may_explain,
    points,
    task_for,
    why_not,
    why_not_at_all,
)
from dpbench.report.tables.scores import heading
from dpbench.report.tables.side_by_side import Pair, is_near, share_removed, side_by_side
from dpbench.report.tables.table import Section
from dpbench.storage.record import Record

PRINTED, SHARED = "Avg.", "Avg. both"
"""The average that the paper prints, and the one over the benchmarks of a row that both measure the same way."""


def table_of(backbone: str) -> int:
    """Return the number of the paper's table to print beside a backbone; 1 for those that no table measures."""
    family = backbones.FAMILIES.get(backbone)
    return (family.paper_table if family else None) or 1


def scores(comparison: Comparison) -> Section:
    """Return Table 1, 2 or 3 beside a comparison."""
    table = published.load(table_of(comparison.cell["backbone"]))
    refusal = why_not_at_all(table, comparison.cell)
    titles = {name: column.title for name, column in table.columns.items()} | {PRINTED: PRINTED, SHARED: SHARED}
    notes = [f"{SHARED}: average retention over those benchmarks of a row that theirs and ours measure the same way."]
    notes += counted.find(comparison).notes
    if comparison.cell["backbone"] == table.backbone:
        ours = {**comparison.cell, "gpu": gpu_of(comparison.records[0].environment)}
        here = [column.task for column in table.columns.values() if task_for(column, comparison) in comparison.tasks]
        notes += [*may_explain(table, ours, here), *table.notes]
    return side_by_side(
        table,
        heading(comparison),
        [_pair(comparison, table, row) for row in table.rows],
        titles,
        notes,
        digits={name: published.digits(name) for name in titles},
        refusal=refusal,
    )


def _pair(comparison: Comparison, table: PaperTable, row: Mapping[str, Any]) -> Pair:
    key, none = _match(comparison, row), comparison.find("none")
    ours = _points(comparison, table, key) if key else {}
    unpruned = _points(comparison, table, none) if none else {}
    why = _reasons(comparison, table, key, ours) if key else {}
    count = counted.find(comparison).tasks
    counting = [name for name, column in table.columns.items() if task_for(column, comparison) in count]
    both = [name for name, value in row["scores"].items() if value is not None and name in ours and name not in why]
    both = [name for name in both if name in counting]
    average = retention({name: ours[name] for name in both}, unpruned)
    theirs: dict[str, float | None] = {**row["scores"], PRINTED: row["average"]}
    if average is not None:
        ours[SHARED] = average
        theirs[SHARED] = retention({name: row["scores"][name] for name in both}, table.unpruned)
        if both == [name for name, value in row["scores"].items() if value is not None]:
            ours[PRINTED] = average
    return Pair(
        row["row"],
        published.group(table, row),
        theirs,
        ours,
        published.note_on(table, row),
        published.why_not_run(table, row) is not None,
        why,
    )


def _points(comparison: Comparison, table: PaperTable, key: RowKey) -> dict[str, float]:
    """Return a row's scores on the paper's scale, by column."""
    found = {
        name: points(comparison.of(key, task_for(column, comparison)), column) for name, column in table.columns.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _reasons(comparison: Comparison, table: PaperTable, key: RowKey, ours: Mapping[str, float]) -> dict[str, str]:
    """Return by column why our numbers of a row are missing or another quantity."""
    reasons = {}
    for name, column in table.columns.items():
        records = comparison.of(key, task_for(column, comparison))
        if records and name not in ours:
            reasons[name] = f"{column.title}: our records have no {column.metric}, which theirs is"
        elif records and (reason := why_not(column, table, comparison)):
            reasons[name] = reason
    return reasons


def _match(comparison: Comparison, row: Mapping[str, Any]) -> RowKey | None:
    """Return our row of the same method at the same share of tokens."""
    if row["method"] in (None, "none"):
        return comparison.find("none") if row["method"] == "none" else None
    total = unpruned_tokens(comparison)
    for key in comparison.rows:
        rate = share_removed(key.budget, total)
        if key.method == row["method"] and is_near(rate, row["prune_rate"]):
            return comparison.find(key.method, key.budget)
    return None


def variants(comparison: Comparison) -> Section:
    """Return Table 5 beside our ablation."""
    table = published.load(5)
    refusal = why_not_at_all(table, comparison.cell) or _why_not_ablation(comparison, table)
    ours = ablation.variants(comparison, scores_of if refusal else _points_of)
    total = unpruned_tokens(comparison)
    shares = {budget: share_removed(budget, total) for row in ours.values() for budget in row}
    budgets = {str(keep): 1 - keep / table.data["num_visual"] for keep in table.data["budgets"]["value"]}
    pairs = []
    for row in table.rows:
        pooled = ours.get(row["variant"], {})
        values = {
            name: pooled[b].value
            for name, rate in budgets.items()
            for b, share in shares.items()
            if b in pooled and is_near(share, rate)
        }
        pairs.append(Pair(row["row"], "", dict(zip(budgets, row["values"], strict=True)), values))
    titles = {name: f"{name} of {table.data['num_visual']}" for name in budgets}
    environment = comparison.records[0].environment
    notes = list(may_explain(table, {**comparison.cell, "gpu": gpu_of(environment)}, table.columns))
    if comparison.cell["backbone"] != table.backbone:
        notes = ["Budgets are matched by the share of tokens."]
    return side_by_side(table, heading(comparison), pairs, titles, notes, digits={}, refusal=refusal)


def _why_not_ablation(comparison: Comparison, table: PaperTable) -> str | None:
    """Return why our average retention is over other numbers than Table 5's, or None."""
    ours = counted.find(comparison).tasks
    if set(ours) != set(table.columns):
        return f"theirs is over {', '.join(table.columns)}; ours over {', '.join(ours)}"
    for column in table.columns.values():
        if any(column.metric not in r.metrics for r in comparison.records if r.cell["task"] == column.task):
            return f"{column.title} of theirs is {column.metric}, which our records do not have"
    return None


def _points_of(records: Iterable[Record]) -> dict[str, float]:
    """Return a row's scores in the metrics of Table 5, by benchmark."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.cell["task"], []).append(record)
    columns = published.load(5).columns
    found = {task: points(rows, columns[task]) for task, rows in by_task.items()}
    return {task: value for task, value in found.items() if value is not None}
