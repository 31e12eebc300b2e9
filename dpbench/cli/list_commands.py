"""`dpbench list`: what can be named on the command line."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Annotated

import typer

from dpbench.cli import messages
from dpbench.cli.options import DataRoot

app = typer.Typer(help="List what can be named on the command line.", no_args_is_help=True)


@app.command("methods")
def list_methods(
    cited: Annotated[bool, typer.Option("--cited", help="Systems that are cited and not run, and why.")] = False,
) -> None:
    """List the installed methods."""
    from dpbench import registry
    from dpbench.report.tables.cited import load_cited

    if cited:
        rows = [(name, f"{system.reason} ({system.paper})") for name, system in load_cited().items()]
    else:
        rows = [(name, registry.summary(name)) for name in registry.methods()]
    typer.echo(messages.format_columns(rows))


@app.command("backbones")
def list_backbones() -> None:
    """List the backbones."""
    typer.echo(messages.format_backbone_table())


@app.command("tasks")
def list_tasks(
    data_root: DataRoot = None,
    reading: Annotated[bool, typer.Option("--reading", help="How answers are read, with examples.")] = False,
) -> None:
    """List the benchmarks: data and whether it is there, size, metric, and what a score may be compared to."""
    from dpbench.cli.reading_table import format_readings
    from dpbench.tasks.data.root import require_root

    width = get_terminal_size().columns
    if reading:
        typer.echo(format_readings(width))
    else:
        typer.echo(messages.format_task_table(require_root(data_root), width))


@app.command("manifests")
def list_manifests() -> None:
    """List the shipped manifests."""
    from dpbench.manifest.reading import shipped

    typer.echo(messages.format_columns((name, messages.read_first_comment(path)) for name, path in shipped().items()))
