"""Options of `dpbench visualize` alone: which image, and what is drawn of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import completion
from dpbench.cli.options import OUTPUT, WHAT

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="Take backbone, methods and first budget from a manifest.",
        autocompletion=completion.manifests,
        rich_help_panel=WHAT,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone; see `dpbench list backbones`. [default: toy-llava]",
        autocompletion=completion.backbones,
        rich_help_panel=WHAT,
    ),
]
Question = Annotated[str, typer.Option(help="What methods that read it are asked.", rich_help_panel=WHAT)]
Rows = Annotated[list[str] | None, typer.Option(help="Rows: kept, lowest, scores, similarity.", rich_help_panel=OUTPUT)]
Out = Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.", rich_help_panel=OUTPUT)]
