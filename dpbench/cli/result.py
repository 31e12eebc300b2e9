"""What `dpbench run` and `dpbench merge` end with: the result itself, in a terminal as a table that fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dpbench.evaluation.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from dpbench.evaluation.outcome import Outcome


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
        screen.print_short([folder], screen.build_console())
    else:
        typer.echo(screen.short_markdown([folder]))
