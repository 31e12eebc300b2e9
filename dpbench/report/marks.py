"""Best and second: one rule for terminal, Markdown, LaTeX and page.

Rows that print the same number share a mark. A mark that every row left would share tells nothing: it is dropped, and
so is the next. References never get one, nor does a row with fewer benchmarks or one that reads more than its budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TypeVar

from dpbench.budget import BudgetRequest
from dpbench.report import counted, spending
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.tables.table import MARKS, Mark

Name = TypeVar("Name")

REFERENCES = ("none", "random", "grid")
"""Methods that others are measured against: they get no mark and keep nobody from one."""


def rank(values: Mapping[Name, float | None], digits: int = 1) -> dict[Name, Mark]:
    """Return the marks of a column, "" for rows without one.

    Args:
        values: by row, the larger the better; None where nothing was measured.
        digits: decimals the table prints.
    """
    left = {name: round(value, digits) for name, value in values.items() if value is not None and value == value}
    marks: dict[Name, Mark] = dict.fromkeys(values, "")
    for mark in MARKS:
        hits = [name for name, value in left.items() if value == max(left.values())]
        if len(hits) == len(left):
            break
        marks.update(dict.fromkeys(hits, mark))
        left = {name: value for name, value in left.items() if name not in hits}
    return marks


def takes_part(comparison: Comparison, key: RowKey) -> bool:
    """Return True if a row may get a mark."""
    is_reference = key.method in REFERENCES
    return not is_reference and counted.is_complete(comparison, key) and not spending.overspends(comparison, key)


def of(
    comparison: Comparison, values: Mapping[RowKey, Mapping[str, float | None]], digits: int = 1
) -> dict[str, dict[RowKey, Mark]]:
    """Return the marks of a comparison's table by column and row, each budget on its own.

    Args:
        comparison: the table's.
        values: by row and column, the larger the better.
        digits: decimals the table prints.
    """
    by_budget: dict[BudgetRequest, list[RowKey]] = defaultdict(list)
    for key in values:
        if takes_part(comparison, key):
            by_budget[key.budget].append(key)
    marks: dict[str, dict[RowKey, Mark]] = defaultdict(lambda: dict.fromkeys(values, ""))
    for keys in by_budget.values():
        for column in dict.fromkeys(name for key in keys for name in values[key]):
            marks[column].update(rank({key: values[key].get(column) for key in keys}, digits))
    return dict(marks)
