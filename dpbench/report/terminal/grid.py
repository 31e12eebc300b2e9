"""Draw a table that fits as rich renderables: one line a row, never wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dpbench.report.tables.table import Cell, Row, Section
from dpbench.report.terminal import fitting

STYLES = {"best": "bold green", "second": "underline"}
TONES = {"good": "green", "bad": "red", "quiet": "dim"}
DIM, BOLD = "dim", "bold"


def draw(section: Section, width: int) -> Iterator[RenderableType]:
    """Yield the lines of a table that fits: its head, and every group below its heading.

    Args:
        section: a part from `fitting.split`, or a table that fits anyway.
        width: of the terminal, in characters.
    """
    widths, signs = fitting.widths(section), _sign_widths(section)
    yield _table([], widths, signs, [Text(fitting.printable(name), DIM) for name in section.columns])
    yield Text("─" * fitting.total(widths), DIM)
    for number, (is_group, rows) in enumerate(groupby(section.rows, key=lambda row: row.kind == "group")):
        if is_group:
            for row in rows:
                yield from ([Text()] if number else [])
                yield Text(fitting.shorten(fitting.printable(row.cells[0].text), width), BOLD)
        else:
            yield _table(rows, widths, signs)


def _table(rows: Iterable[Row], widths: Sequence[int], signs: Sequence[int], head: Sequence[Text] = ()) -> Table:
    """Return rows whose columns all take the given places, so that the tables of all groups are in line."""
    table = Table(box=None, show_header=False, padding=(0, fitting.GAP, 0, 0), pad_edge=False)
    for place in widths:
        table.add_column(width=place, no_wrap=True)
    if head:
        table.add_row(*_align(head, widths))
    for row in rows:
        texts = [_text(cell, row, place) for cell, place in zip(row.cells, signs, strict=True)]
        table.add_row(*_align(texts, widths))
    return table


def _align(texts: Iterable[Text], widths: Iterable[int]) -> Iterator[Text]:
    """Yield texts, all but the first moved to the right edge; rich itself would drop the blanks kept for signs."""
    for at, (text, place) in enumerate(zip(texts, widths, strict=True)):
        yield Text.assemble(" " * (place - text.cell_len), text) if at else text


def _sign_widths(section: Section) -> list[int]:
    """Return the places of every column's signs, which all its rows keep free: digits stay in line."""
    rows = [row.cells for row in section.rows if row.kind != "group"]
    return [
        max((len(fitting.printed(cells[at]).signs) for cells in rows), default=0) for at in range(len(section.columns))
    ]


def _text(cell: Cell, row: Row, sign_width: int) -> Text:
    shown = fitting.printed(cell)
    style = STYLES.get(cell.mark) or TONES.get(cell.tone) or ("italic" if row.kind == "cited" else "")
    return Text.assemble((shown.text, style), (f"{shown.signs:<{sign_width}}", DIM))
