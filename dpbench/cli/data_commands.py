"""`dpbench data`: fetch the benchmarks' data and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import messages
from dpbench.cli.options import DataRoot, TaskNames

app = typer.Typer(help="Fetch the benchmarks' data and check it.", no_args_is_help=True)


@app.command("pull")
def data_pull(
    task: TaskNames = None,
    to: Annotated[
        Path | None, typer.Option(envvar="DPBENCH_DATA", help="Data root to fill; the hub's cache by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch; the pinned commit by default.")] = None,
) -> None:
    """Fetch the files that the benchmarks read from the hub; a broken download goes on."""
    from dpbench.tasks.data.pull import pull

    for fetched in pull(task or (), to, revision):
        typer.echo(messages.format_download(fetched))


@app.command("verify")
def data_verify(
    task: TaskNames = None,
    data_root: DataRoot = None,
    revision: Annotated[str | None, typer.Option(help="Commit it must be of; any; by default the pinned.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Decode a few images of each file instead of all.")] = False,
) -> None:
    """Check files, revision, hashes, columns, rows and images of the benchmarks' data."""
    from dpbench.tasks.data.root import require_root
    from dpbench.tasks.data.verify import render, verify

    verdicts = verify(task or (), require_root(data_root), revision=revision, quick=quick)
    typer.echo(render(verdicts))
    raise typer.Exit(1 if any(verdict.problems for verdict in verdicts) else 0)
