"""What `dpbench run`, `merge` and `profile` end with: the result itself, in a terminal as a table that fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dpbench.evaluation.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from dpbench.evaluation.outcome import Outcome
    from dpbench.report.tables.table import Section
    from dpbench.storage.record import Profile


def show(outcome: Outcome, folder: Path, shard: Shard = WHOLE) -> None:
    """Print the result of a run: one cell in a sentence, several as the short form of a report.

    Args:
        outcome: of the run; nothing is printed if no cell is finished.
        folder: of the run.
        shard: this process's part; only the one that merged the answers of all has a result.

    Raises:
        RecordError: records cannot be read, or cannot share a table.
    """
    finished = (*outcome.added, *outcome.existing)
    if not finished or (shard != WHOLE and not outcome.added):
        return
    from dpbench.report.terminal import screen, single

    if len(finished) == 1 and not (outcome.unfinished or outcome.failed):
        typer.echo(single.describe(folder, finished[0]))
    elif screen.is_terminal():
        typer.echo()  # apart from what the run said of itself
        screen.print_short([folder], screen.build_console())
    else:
        typer.echo(screen.short_markdown([folder]))


def show_profiles(profiles: Sequence[Profile], folder: Path) -> None:
    """Print what was timed: in a terminal tokens, FLOPs and the time to the first token; else all columns.

    Args:
        profiles: one or more, each of a method at a budget.
        folder: of the run.
    """
    from dpbench.report.tables import efficiency
    from dpbench.report.terminal import screen

    if screen.is_terminal():
        screen.print_costs(profiles, folder, screen.build_console())
    else:
        show_tables(efficiency.sections(profiles))


def show_tables(sections: Sequence[Section]) -> None:
    """Print tables, in a terminal in as many parts as its width needs, else as Markdown."""
    from dpbench.report.tables.render import render_all
    from dpbench.report.terminal import screen

    if screen.is_terminal():
        screen.print_full(sections, screen.build_console())
    else:
        typer.echo(render_all(sections, "markdown"))
