"""When a number of ours measures what a number of the paper measures, and what may explain that they differ.

Numbers of different quantities are printed beside each other, never subtracted: F1 and accuracy, validation and
test-dev, a model and another, a part of the samples and all, milliseconds on one GPU and on another. What only may
move a score, such as the prompt or the type of the weights, is said below the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from dpbench import tasks
from dpbench.report.runs import Comparison
from dpbench.report.tables.published import Column, PaperTable, spelt
from dpbench.storage.record import Record

ANOTHER_QUANTITY = ("ocr",)
"""Protocol fields that make a column's numbers another quantity; the others may explain a difference."""


def why_not_at_all(table: PaperTable, cell: Mapping[str, Any]) -> str | None:
    """Return why no number of a run compares with a table, or None.

    Args:
        table: the paper's.
        cell: of our records, or of our profiles the fields that both have.
    """
    reasons = []
    if cell["backbone"] != table.backbone:
        reasons.append(f"theirs is {table.title.split(',')[0]}, ours {cell['backbone']}, another model")
    if cell.get("limit") is not None:
        reasons.append(f"theirs has all samples, ours {cell['limit']} a benchmark")
    batch_size = table.protocol.get("batch_size")
    if batch_size and cell["batch_size"] != batch_size.value:
        reasons.append(f"theirs is of batch size {batch_size.value}, ours of {cell['batch_size']}")
    return "; ".join(reasons) or None


def task_for(column: Column, comparison: Comparison) -> str:
    """Return the benchmark of ours that stands in a column: the column's own, or another variant of it."""
    if column.task in comparison.tasks:
        return column.task
    variants = [name for name in comparison.tasks if (tasks.ALL[name].variant_of or name) == column.benchmark]
    return variants[0] if variants else column.task


def why_not(column: Column, table: PaperTable, comparison: Comparison) -> str | None:
    """Return why our numbers in a column are another quantity, or None."""
    task = task_for(column, comparison)
    if task != column.task:
        ours = tasks.ALL[task]
        return f"{column.title}: theirs is {column.description}; ours {ours.title} ({ours.measure}, {ours.split})"
    for name in ANOTHER_QUANTITY:
        setting, ours_value = table.protocol.get(name), comparison.cell[name]
        if setting and column.task in setting.columns and setting.value not in (None, ours_value):
            return f"{column.title}: {name} is {setting.text} with theirs, {spelt(ours_value)} with ours"
    return None


def points(records: Sequence[Record], column: Column) -> float | None:
    """Return the score of records on the paper's scale, mean over seeds; None if one lacks the paper's metric.

    A benchmark that stands in for the column's own has its own score.
    """
    values = [_point(record, column) for record in records]
    found = [value for value in values if value is not None]
    return mean(found) if found and len(found) == len(values) else None


def _point(record: Record, column: Column) -> float | None:
    if record.cell["task"] != column.task:
        return record.score
    value = record.metrics.get(column.metric)
    if value is None:
        return None
    return 100 * value if tasks.find(column.task).percent == "ratio" else value


def may_explain(table: PaperTable, ours: Mapping[str, Any], columns: Iterable[str] = ()) -> Iterable[str]:
    """Yield the fields of a protocol in which ours differs from the paper's, or may, one sentence each.

    Args:
        table: with the paper's protocol.
        ours: by the same names; a field that is missing or None does not apply to our model.
        columns: tasks that have a column here.
    """
    yield from _weights(ours)
    present = set(columns)
    for name, setting in table.protocol.items():
        value = ours.get(name)
        concerned = [table.columns[task].title for task in setting.columns if task in present]
        if value is None or (setting.columns and not concerned) or name in ANOTHER_QUANTITY:
            continue
        if setting.value != value and not (name == "gpu" and is_same_gpu(setting.value, value)):
            theirs = "not stated" if setting.value is None else f"{setting.text} ({setting.basis})"
            where = f" ({', '.join(concerned)})" if concerned else ""
            yield f"May explain a difference{where}: {name}: theirs {theirs}, ours {spelt(value)}."


def _weights(ours: Mapping[str, Any]) -> Iterable[str]:
    for name in ("weights", "revision", "quantize"):
        if ours.get(name):
            yield f"May explain a difference: {name}: ours {Path(ours[name]).name}."


def is_same_gpu(theirs: str, ours: str) -> bool:
    """Return True if two names are of one model of GPU; the paper writes some of them without the maker's series."""
    return theirs.split()[-1] in ours.split()


def gpu_of(environment: Mapping[str, Any]) -> str:
    """Return a machine's GPU, or that it has none."""
    return str(environment.get("gpu", f"none ({environment.get('cpu')})"))


def why_not_times(table: PaperTable, environment: Mapping[str, Any]) -> str | None:
    """Return why our milliseconds do not compare with a table's, or None."""
    theirs, ours = table.protocol["gpu"].value, gpu_of(environment)
    return None if is_same_gpu(theirs, ours) else f"milliseconds on another processor: theirs {theirs}, ours {ours}"
