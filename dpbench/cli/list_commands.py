"""`dpbench list`: what can be named on the command line; with a name, everything about it."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Annotated

import typer

from dpbench.cli import completion, messages
from dpbench.cli.options import DataRoot

app = typer.Typer(
    help="List what can be named on the command line; with a NAME, everything about it.", no_args_is_help=True
)
Method = Annotated[str | None, typer.Argument(metavar="NAME", help="A method.", autocompletion=completion.methods)]
Backbone = Annotated[
    str | None, typer.Argument(metavar="NAME", help="A backbone.", autocompletion=completion.backbones)
]
Task = Annotated[str | None, typer.Argument(metavar="NAME", help="A benchmark.", autocompletion=completion.tasks)]
Manifest = Annotated[
    str | None, typer.Argument(metavar="NAME", help="A shipped manifest.", autocompletion=completion.manifests)
]


@app.command("methods")
def list_methods(
    name: Method = None,
    cited: Annotated[bool, typer.Option("--cited", help="Systems that are cited and not run, and why.")] = False,
) -> None:
    """List the installed methods."""
    from dpbench import registry
    from dpbench.cli.list_details import describe_method
    from dpbench.report.tables.cited import load_cited

    if name is not None:
        typer.echo(describe_method(name, get_terminal_size().columns))
        return
    if cited:
        rows = [(name, f"{system.reason} ({system.paper})") for name, system in load_cited().items()]
    else:
        rows = [(name, registry.summary(name)) for name in registry.methods()]
    typer.echo(messages.format_columns(rows, get_terminal_size().columns))


@app.command("backbones")
def list_backbones(name: Backbone = None) -> None:
    """List the backbones."""
    from dpbench.cli.list_details import OWN_DATA, describe_backbone

    if name is not None:
        typer.echo(describe_backbone(name, get_terminal_size().columns))
        return
    typer.echo(f"{messages.format_backbone_table()}\n\n{OWN_DATA}\nDetails: dpbench list backbones NAME")


@app.command("tasks")
def list_tasks(
    name: Task = None,
    data_root: DataRoot = None,
    reading: Annotated[bool, typer.Option("--reading", help="How answers are read, with examples.")] = False,
) -> None:
    """List the benchmarks: whether their data is there, size and metric; with a NAME also what to compare it to."""
    from dpbench.cli.list_details import OWN_DATA, describe_task
    from dpbench.cli.reading_table import format_readings
    from dpbench.tasks.data.root import require_root

    width = get_terminal_size().columns
    if reading:
        typer.echo(format_readings(width))
    elif name is not None:
        typer.echo(describe_task(name, require_root(data_root), width))
    else:
        typer.echo(f"{messages.format_task_table(require_root(data_root))}\n{OWN_DATA}")


@app.command("manifests")
def list_manifests(name: Manifest = None) -> None:
    """List the shipped manifests."""
    from dpbench.cli.list_details import describe_manifest
    from dpbench.manifest.reading import shipped

    width = get_terminal_size().columns
    if name is not None:
        typer.echo(describe_manifest(name, width))
        return
    rows = [(name, messages.read_first_comment(path)) for name, path in shipped().items()]
    typer.echo(messages.format_columns(rows, width))
