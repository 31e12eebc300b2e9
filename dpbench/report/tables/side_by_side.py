"""The paper's rows and ours, one below the other: theirs, ours, and the difference where it means something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from dpbench.budget import BudgetRequest
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import Cell, Footnotes, Row, Section, group_row, number

NEAR = 0.005
"""Largest difference of two pruning rates that count as the same budget."""
NUMBERS = ("Table", "Row", "Group", "Column", "Theirs", "Ours", "Difference", "Why not")
"""What CSV and JSON have of each column of each row."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the paper with ours of the same method and share of tokens.

    Attributes:
        name: name of the row.
        group: heading above the row.
        theirs: by column; None where the paper prints a dash.
        ours: by column; a column without a value was not measured.
        note: what a reader should know of their row, or None.
        is_cited: the system is not run here.
        why_not: by column, why ours is missing, or another quantity than theirs.
    """

    name: str
    group: str
    theirs: Mapping[str, float | None]
    ours: Mapping[str, float]
    note: str | None = None
    is_cited: bool = False
    why_not: Mapping[str, str] = field(default_factory=dict)

    def difference(self, column: str) -> float | None:
        """Return ours minus theirs, or None if one is missing or they are different quantities."""
        theirs, ours = self.theirs.get(column), self.ours.get(column)
        return None if theirs is None or ours is None or column in self.why_not else ours - theirs


def share_removed(budget: BudgetRequest, total: float | None) -> float | None:
    """Return the share of visual tokens that a budget removes; None if it cannot be computed."""
    if budget.keep is None:
        return budget.prune_rate
    return 1 - budget.keep / total if total else None


def is_near(share: float | None, rate: float) -> bool:
    """Return True if a share of removed tokens is the paper's rate."""
    return share is not None and abs(share - rate) < NEAR


def side_by_side(
    table: PaperTable,
    ours: str,
    pairs: Sequence[Pair],
    titles: Mapping[str, str],
    notes: Iterable[str],
    *,
    digits: Mapping[str, int],
    refusal: str | None,
) -> Section:
    """Return up to three lines per row: theirs, ours, ours minus theirs.

    Args:
        table: the paper's.
        ours: what ours is, for the heading.
        pairs: the rows.
        titles: headings by column.
        notes: sentences below the table.
        digits: decimals by column, 1 where it has none.
        refusal: why nothing compares; then there are no differences.
    """
    columns = ("Method", "Whose", *titles.values())
    lines, letters, group = list[Row](), Footnotes(), ""
    for pair in pairs:
        if pair.group != group:
            group = pair.group
            lines.append(group_row(group, len(columns)))
        lines += _lines(pair, {name: digits.get(name, 1) for name in titles}, letters, with_difference=not refusal)
    numbers = [_numbers(table, pair, name, title, refusal) for pair in pairs for name, title in titles.items()]
    none = (f"No differences: {refusal}.",) if refusal else ()
    head = f"Table {table.number} of the paper beside ours: {table.title}; ours: {ours}"
    below = (f"Theirs: {table.source}.", *none, *notes, *letters.notes())
    return Section(head, frame_of(numbers, NUMBERS), below, columns, tuple(lines), "beside-paper", num_labels=2)


def _numbers(table: PaperTable, pair: Pair, name: str, title: str, refusal: str | None) -> dict[str, Any]:
    theirs, ours = pair.theirs.get(name), pair.ours.get(name)
    difference = None if refusal else pair.difference(name)
    reason = pair.why_not.get(name) or (refusal if theirs is not None and ours is not None else None)
    values = (table.number, pair.name, pair.group or None, title, theirs, ours, difference, reason)
    return dict(zip(NUMBERS, values, strict=True))


def _lines(pair: Pair, digits: Mapping[str, int], letters: Footnotes, *, with_difference: bool) -> Iterable[Row]:
    refs = (letters.letter(pair.note),) if pair.note else ()
    theirs = [Cell(number(pair.theirs.get(name), digits[name])) for name in digits]
    yield Row((Cell(pair.name, refs=refs), Cell("paper"), *theirs), "cited" if pair.is_cited else "data")
    if not pair.ours:
        return
    explained = set(pair.why_not) - (set(pair.ours) if with_difference else set())
    yield Row((Cell(""), Cell("ours"), *(_ours_cell(pair, name, digits[name], letters, explained) for name in digits)))
    if with_difference:
        yield Row(
            (Cell(""), Cell("difference"), *(_difference_cell(pair, name, digits[name], letters) for name in digits))
        )


def _ours_cell(pair: Pair, name: str, digits: int, letters: Footnotes, explained: Set[str]) -> Cell:
    """Return our number, or the dash; with the reason if the difference below does not give it."""
    refs = (letters.letter(pair.why_not[name]),) if name in explained else ()
    return Cell(number(pair.ours.get(name), digits), refs=refs)


def _difference_cell(pair: Pair, name: str, digits: int, letters: Footnotes) -> Cell:
    """Return the difference, or the dash with the reason where both numbers stand above it."""
    has_both = name in pair.ours and pair.theirs.get(name) is not None
    is_explained = has_both and name in pair.why_not
    refs = (letters.letter(pair.why_not[name]),) if is_explained else ()
    return Cell(number(pair.difference(name), digits, sign=True), refs=refs)
