"""One table: its numbers for programs and its cells for eyes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

Mark = Literal["", "best", "second"]
Tone = Literal["", "good", "bad", "quiet"]

MARKS: tuple[Mark, Mark] = ("best", "second")
DASH = "-"
"""Printed where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a reader sees in one place.

    Attributes:
        text: without any markup.
        mark: best and second of its column and budget, or nothing.
        refs: footnotes, one letter or sign each.
        tone: its colour on a terminal.
    """

    text: str
    mark: Mark = ""
    refs: tuple[str, ...] = ()
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a method's cells, the heading of a budget, or a row cited from a paper and not run."""

    cells: tuple[Cell, ...]
    kind: Literal["data", "group", "cited"] = "data"


@dataclass(frozen=True, slots=True)
class Section:
    """One table with its heading and footnotes.

    Attributes:
        heading: one line.
        frame: the numbers, for CSV and JSON; a column per quantity, unit in its name.
        notes: sentences below the table.
        columns: headings of the table a reader sees.
        rows: its lines.
        name: one word that says what it is, for file names and programs; not unique in a report.
        num_labels: leading columns that say what a row is; every part of a table that is split has them.
    """

    heading: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = field(default=())
    name: str = "table"
    num_labels: int = 1


class Footnotes:
    """Letters for reasons, in order of first use."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, reason: str) -> str:
        """Return the letter of a reason: a, b, ..., z, aa, ab, ..."""
        return self._letters.setdefault(reason, _letters(len(self._letters)))

    def notes(self) -> tuple[str, ...]:
        """Return the footnotes, one sentence each."""
        return tuple(f"{letter}: {reason}" for reason, letter in self._letters.items())


def group_row(text: str, num_columns: int) -> Row:
    """Return the heading of a group of rows."""
    return Row((Cell(text), *(Cell("") for _ in range(num_columns - 1))), "group")


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return a number as tables print it, or the dash; a small number other than zero does not print as zero."""
    if value is None or value != value:
        return DASH
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if value and float(text) == 0 and not sign:
        return f"{value:.2g}"
    return text.replace("-", "+", 1) if sign and float(text) == 0 else text


def plain_section(
    name: str, heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]
) -> Section:
    """Return a table whose numbers are its texts."""
    rows = [tuple(row) for row in rows]
    frame = pd.DataFrame(rows, columns=list(columns))
    lines = tuple(Row(tuple(map(Cell, row))) for row in rows)
    return Section(heading, frame, tuple(notes), tuple(columns), lines, name)


def _letters(index: int) -> str:
    text = ""
    while index >= 0:
        text = chr(ord("a") + index % 26) + text
        index = index // 26 - 1
    return text
