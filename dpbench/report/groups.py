"""The groups of a table's rows: a budget's rows that keep to it, then those that read more than it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from dpbench.report import spending
from dpbench.report.runs import Comparison, RowKey, unpruned_tokens

OVER_BUDGET = "Read more than their budget"
"""Begins the heading of rows that overspend."""


def groups(comparison: Comparison, keys: Iterable[RowKey]) -> Iterator[tuple[str, list[RowKey]]]:
    """Yield the heading and the rows of every group that has any.

    Args:
        comparison: the table's.
        keys: its rows, those of one budget together.
    """
    for _, same in groupby(keys, key=lambda key: key.budget):
        rows = list(same)
        over = [key for key in rows if spending.overspends(comparison, key)]
        if within := [key for key in rows if key not in over]:
            yield budget_heading(comparison, within[0]), within
        if over:
            yield f"{OVER_BUDGET}: {budget_heading(comparison, over[0])}", over


def budget_heading(comparison: Comparison, key: RowKey) -> str:
    """Return the heading of a budget's rows."""
    total = unpruned_tokens(comparison)
    keep, rate = key.budget.keep, key.budget.prune_rate
    if key.budget.keeps_all:
        return f"Unpruned{f', {total:.0f} visual tokens' if total else ''} (100 %)"
    if keep is None:
        return f"Pruning rate {100 * (rate or 0):.1f} %"
    share = f" ({100 * (1 - keep / total):.1f} % pruned)" if total else ""
    return f"Keep {keep} visual tokens{share}"
