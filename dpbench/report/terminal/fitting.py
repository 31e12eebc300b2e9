"""Fit a table to a width: too many columns become several tables, a label that is too long loses its middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size

from dpbench.report.tables.table import Cell, Row, Section

GAP = 2
"""Blanks between columns."""
CUT = "…"
"""Stands for what a shortened text has lost."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A cell's text as it is printed, apart from the signs and letters of its footnotes."""

    text: str
    signs: str

    @property
    def width(self) -> int:
        """Return how many places of a terminal both take."""
        return cell_len(self.text) + cell_len(self.signs)


def printed(cell: Cell) -> Printed:
    """Return a cell's text, in which nothing can steer a terminal, and its signs behind a blank."""
    return Printed(printable(cell.text), f" {','.join(cell.refs)}" if cell.refs else "")


def printable(text: str) -> str:
    """Return text with a question mark in place of what is not printed, such as escape sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def widths(section: Section) -> list[int]:
    """Return how many places every column takes; the heading of a group may run over all of them."""
    rows = [[printed(cell) for cell in row.cells] for row in section.rows if row.kind != "group"]
    found = []
    for at, name in enumerate(section.columns):
        # Signs have places of their own, so that the digits stay in line.
        text = max((cell_len(row[at].text) for row in rows), default=0)
        signs = max((cell_len(row[at].signs) for row in rows), default=0)
        found.append(max(cell_len(printable(name)), text + signs))
    return found


def total(columns: Sequence[int]) -> int:
    """Return the width of a table whose columns take as many places."""
    return sum(columns) + GAP * (len(columns) - 1)


def split(section: Section, width: int) -> list[Section]:
    """Return a table in parts that fit, each with the columns that label a row and as many others as there is room for.

    Args:
        section: the table.
        width: of the terminal, in characters.
    """
    section = shorten_labels(section, max(width // 2, width - total(widths(section)[1:]) - GAP))
    places = widths(section)
    labels = list(range(_num_labels(section, width)))
    taken = [places[at] for at in labels]
    parts: list[list[int]] = [[]]
    for at in range(len(labels), len(places)):
        used = [min(places[other], width - total(taken) - GAP) for other in parts[-1]]
        if parts[-1] and total([*taken, *used, places[at]]) > width:
            parts.append([])
        parts[-1].append(at)
    return [_narrow(_select(section, [*labels, *part]), width) for part in parts]


def _num_labels(section: Section, width: int) -> int:
    """Return how many columns all parts have: one where the labels would leave no room for any other column."""
    places, num = widths(section), section.num_labels
    return num if total([*places[:num], max(places[num:], default=0)]) <= width else 1


def _select(section: Section, places: Sequence[int]) -> Section:
    rows = tuple(replace(row, cells=tuple(row.cells[at] for at in places)) for row in section.rows)
    return replace(section, columns=tuple(section.columns[at] for at in places), rows=rows)


def _narrow(section: Section, width: int) -> Section:
    """Return a table whose last column loses what is too long: it cannot be split any further."""
    if total(widths(section)) <= width:
        return section
    room = max(1, width - total(widths(section)[:-1]) - GAP)
    return _shorten_column(section, len(section.columns) - 1, room)


def shorten_labels(section: Section, room: int) -> Section:
    """Return a table whose first column takes at most `room` places."""
    return _shorten_column(section, 0, room)


def _shorten_column(section: Section, at: int, room: int) -> Section:
    columns = tuple(shorten(name, room) if place == at else name for place, name in enumerate(section.columns))
    return replace(section, columns=columns, rows=tuple(_shorten_cell(row, at, room) for row in section.rows))


def _shorten_cell(row: Row, at: int, room: int) -> Row:
    if row.kind == "group":
        return row
    cell = row.cells[at]
    short = replace(cell, text=shorten(printable(cell.text), room - cell_len(printed(cell).signs)))
    return replace(row, cells=(*row.cells[:at], short, *row.cells[at + 1 :]))


def shorten(text: str, room: int) -> str:
    """Return text without its middle where it is too long: labels differ at their ends."""
    if cell_len(text) <= room:
        return text
    tail = max(0, room - 1) * 2 // 3
    head = set_cell_size(text, max(0, room - 1 - tail)).rstrip()
    return head + CUT + (set_cell_size(text[::-1], tail)[::-1] if tail else "")
