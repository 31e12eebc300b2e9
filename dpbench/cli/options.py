"""Options that several commands share, and their values; flags for a manifest's fields come from `cli.flags`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


Manifest = Annotated[Path | None, typer.Argument(help="A manifest file, or the name of a shipped one.")]
MethodName = Annotated[str | None, typer.Option("--method", help="Method to run; see `dpbench list methods`.")]
Several = Annotated[list[str] | None, typer.Option("--method", help="Methods, comma-separated; all by default.")]
Params = Annotated[list[str] | None, typer.Option("--param", help="Hyper-parameter of the method, as name=value.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="Backbone; see `dpbench list backbones`.")]
Keep = Annotated[int | None, typer.Option(help="Visual tokens to keep per image.")]
PruneRate = Annotated[float | None, typer.Option(help="Share of the visual tokens to remove, 0 to 1.")]
Kind = Annotated[BudgetKind | None, typer.Option("--budget-kind", help="In-LLM budgets: layer mean, or what is left.")]
Tasks = Annotated[list[str] | None, typer.Option("--tasks", help="Benchmarks, comma-separated; all ten by default.")]
TaskNames = Annotated[list[str] | None, typer.Argument(metavar="TASK", help="Benchmarks; all ten by default.")]
FeatureCache = Annotated[
    str,
    typer.Option(
        "--feature-cache",
        help="Memory on the model's device for encoded images, reused by later questions; 0 disables it.",
    ),
]
NumShards = Annotated[
    int | None, typer.Option(help="Number of processes that split the samples; then run dpbench merge.")
]
ShardNumber = Annotated[int | None, typer.Option("--shard", help="Number of this process, from 0.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Fail instead of waiting if another dpbench runs this.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the benchmarks' data; DPBENCH_DATA by default.")]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
RunFolders = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN", help="Run folders; all under results/ by default.")
]
Runs = Annotated[list[Path] | None, typer.Option("--run", help="A run folder, like RUN.")]
