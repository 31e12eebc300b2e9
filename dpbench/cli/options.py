"""Options that several commands share, and their values; flags for a manifest's fields come from `cli.flags`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import completion


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """How tables are written."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


class Table(StrEnum):
    """A table of the paper: 1 LLaVA-1.5, 2 LLaVA-NeXT, 3 Qwen2.5-VL, 4 efficiency, 5 ablation."""

    one = "1"
    two = "2"
    three = "3"
    four = "4"
    five = "5"
    all = "all"


class Beside(StrEnum):
    """Whose numbers are shown next to ours."""

    paper = "paper"


class Subset(StrEnum):
    """A part of a benchmark that is also scored separately."""

    hard = "hard"


class Sweep(StrEnum):
    """What a profile varies."""

    visual_tokens = "visual-tokens"


class Scale(StrEnum):
    """How long the toy recipe trains."""

    small = "small"
    full = "full"


class BudgetKind(StrEnum):
    """What a budget counts for methods that cut inside the LLM."""

    mean = "mean"
    final = "final"


WHAT, BUDGET, PROTOCOL, MACHINE, OUTPUT = "What to run", "Budget", "Protocol", "Machine", "Output"
"""Headings that the flags of a help page stand under."""
PANELS = {
    "": PROTOCOL,
    "weights": WHAT,
    "revision": WHAT,
    "limit": WHAT,
    "quantize": MACHINE,
    "device_map": MACHINE,
    "batch_size": MACHINE,
}
"""Headings of the flags that come from a manifest's fields."""

Manifest = Annotated[
    Path | None,
    typer.Argument(help="A manifest file, or the name of a shipped one.", autocompletion=completion.manifests),
]
RequiredManifest = Annotated[
    Path, typer.Argument(help="A manifest file, or the name of a shipped one.", autocompletion=completion.manifests)
]
CheckedMethod = Annotated[
    str,
    typer.Argument(help="A registered method, yours or one that is shipped.", autocompletion=completion.methods),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "--methods",
        help="Methods, comma-separated; see `dpbench list methods`.",
        autocompletion=completion.methods,
        rich_help_panel=WHAT,
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", help="Hyper-parameter of the method, as name=value.", rich_help_panel=WHAT),
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone; see `dpbench list backbones`.",
        autocompletion=completion.backbones,
        rich_help_panel=WHAT,
    ),
]
Keep = Annotated[int | None, typer.Option(help="Visual tokens to keep per image.", rich_help_panel=BUDGET)]
PruneRate = Annotated[
    float | None, typer.Option(help="Share of the visual tokens to remove, 0 to 1.", rich_help_panel=BUDGET)
]
Keeps = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Visual tokens to keep per image; several with commas.", rich_help_panel=BUDGET),
]
PruneRates = Annotated[
    list[str] | None,
    typer.Option("--prune-rate", help="Share to remove, 0 to 1; several with commas.", rich_help_panel=BUDGET),
]
Kind = Annotated[
    BudgetKind | None,
    typer.Option("--budget-kind", help="In-LLM budgets: layer mean, or what is left.", rich_help_panel=BUDGET),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        help="Benchmarks, comma-separated; all ten by default.",
        autocompletion=completion.tasks,
        rich_help_panel=WHAT,
    ),
]
TaskNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK", help="Benchmarks; all ten by default.", autocompletion=completion.tasks),
]
FeatureCache = Annotated[
    str,
    typer.Option(
        "--feature-cache",
        help="Memory on the model's device for encoded images, reused by later questions; 0 disables it.",
        rich_help_panel=MACHINE,
    ),
]
NumShards = Annotated[
    int | None,
    typer.Option(help="Number of processes that split the samples; then run dpbench merge.", rich_help_panel=MACHINE),
]
ShardNumber = Annotated[
    int | None, typer.Option("--shard", help="Number of this process, from 0.", rich_help_panel=MACHINE)
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Fail instead of waiting if another dpbench runs this.", rich_help_panel=MACHINE),
]
OnDevice = Annotated[Device, typer.Option("--device", help="Where the model runs.", rich_help_panel=MACHINE)]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder with the benchmarks' data; DPBENCH_DATA by default.", rich_help_panel=MACHINE),
]
Out = Annotated[Path, typer.Option(help="Folder for results.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the cells and run nothing.", rich_help_panel=OUTPUT)]
RunFolders = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN", help="Run folders; all under results/ by default.")
]
Runs = Annotated[list[Path] | None, typer.Option("--run", hidden=True, help="A run folder, like RUN.")]
