"""Print reports on a terminal: no line is longer than it is wide, and no row of a table is wrapped."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section
from dpbench.report.terminal import fitting, grid, short
from dpbench.report.terminal.shell import wrap_command
from dpbench.report.terminal.short import Block
from dpbench.storage.record import Profile

BULLET = "· "
PAGE = ("--format", "html", "--out", "report.html")


def is_terminal() -> bool:
    """Return True if standard output is a terminal; then it gets tables that fit, and a pipe gets Markdown."""
    return sys.stdout.isatty()


def build_console() -> Console:
    """Return a console on standard output, as wide as the terminal; NO_COLOR is respected."""
    return Console(highlight=False)


def print_short(folders: Sequence[Path], console: Console) -> None:
    """Print the short form of some runs, and the commands that show more.

    Raises:
        ConfigError: a folder has no records.
        RecordError: records cannot be read, or cannot share a table.
    """
    _print_blocks(short.blocks(folders, console.width), folders, console)


def print_costs(profiles: Sequence[Profile], folder: Path, console: Console) -> None:
    """Print the short form of what was timed just now, and the commands that show more.

    Args:
        profiles: one or more, each of a method at a budget.
        folder: of the run, which the commands read.
        console: where to print.
    """
    _print_blocks(short.cost_blocks(profiles), [folder], console)


def _print_blocks(blocks: Iterable[Block], folders: Sequence[Path], console: Console) -> None:
    width = console.width
    for block in blocks:
        _print(_section(block.section, width), console)
        console.print()
        for sentence in block.sentences:
            console.print(_fill(sentence, width, BULLET))
        if block.sentences:
            console.print()
    for command in commands(folders):
        console.print(Text(wrap_command(command, width), "cyan"))


def short_markdown(folders: Sequence[Path]) -> str:
    """Return the short form of some runs as Markdown, for a pipe."""
    parts = []
    for block in short.blocks(folders):
        parts += [render(block.section, "markdown"), *block.sentences]
    return "\n\n".join([*parts, "\n".join(f"    {command}" for command in commands(folders))])


def print_full(sections: Iterable[Section], console: Console) -> None:
    """Print whole tables, each in as many parts as the width needs; a note is printed once, below its first table."""
    seen: set[str] = set()
    for section in sections:
        # A footnote's letter belongs to its own table, so that notes of two tables are equal only if they say the same.
        notes = tuple(note for note in section.notes if note not in seen or _is_lettered(note))
        seen.update(notes)
        _print(_section(replace(section, notes=notes), console.width), console)
        console.print()


def _is_lettered(note: str) -> bool:
    return note.partition(":")[0].isalpha() and len(note.partition(":")[0]) <= 2


def commands(folders: Sequence[Path]) -> tuple[str, str]:
    """Return the commands that show all tables, and the page."""
    words = ["dpbench", "report", *map(str, folders)]
    return shlex.join([*words, "--full"]), shlex.join([*words, *PAGE])


def _section(section: Section, width: int) -> Iterator[RenderableType]:
    yield Text(_fill_text(section.heading, width), grid.BOLD)
    for part in fitting.split(section, width):
        yield Text()
        yield from grid.draw(part, width)
    if section.notes:
        yield Text()
    for note in section.notes:
        yield _fill(note, width, style=grid.DIM)


def _print(lines: Iterable[RenderableType], console: Console) -> None:
    for line in lines:
        console.print(line)


def _fill(text: str, width: int, bullet: str = "", style: str = "") -> Text:
    return Text(_fill_text(text, width, bullet), style)


def _fill_text(text: str, width: int, bullet: str = "") -> str:
    return textwrap.fill(
        fitting.printable(text), width, initial_indent=bullet, subsequent_indent="  ",
        break_on_hyphens=False,
    )  # fmt: skip
