"""Options of `dpbench train` alone, and the headings of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import completion
from dpbench.cli.options import OUTPUT, WHAT

TRAINING = "Training"
PANELS = {"": TRAINING, "weights": WHAT, "revision": WHAT, "data": WHAT}
"""Headings of the flags that come from the recipe's fields."""

Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="Backbone to train a scorer for.",
        autocompletion=completion.backbones,
        rich_help_panel=WHAT,
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", help="Any setting of the recipe, as name=value.", rich_help_panel=TRAINING),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.", rich_help_panel=TRAINING)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the scorer; scorers/<backbone> by default.", rich_help_panel=OUTPUT)
]
