"""The options that several commands share, and the values they take."""

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


class Dtype(StrEnum):
    """Floating-point type of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantize(StrEnum):
    """How weights are packed, by bitsandbytes."""

    four = "4bit"
    eight = "8bit"


class DeviceMap(StrEnum):
    """How layers are placed."""

    auto = "auto"


class TrainDtype(StrEnum):
    """Floating-point type of a frozen backbone under training."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Variant(StrEnum):
    """Throttler and denoiser a scorer is trained with."""

    diffprune = "diffprune"
    gumbel_ste = "gumbel-ste"
    scale_gate = "scale-gate"
    global_denoiser = "global-denoiser"


class Attention(StrEnum):
    """Attention kernel."""

    sdpa = "sdpa"
    eager = "eager"


class Prompt(StrEnum):
    """Conversation a question is put into."""

    default = "default"
    template = "template"
    vicuna_v1 = "vicuna_v1"


class Anyres(StrEnum):
    """How a budget is shared over AnyRes's views."""

    per_view = "per-view"
    whole = "global"


class Newline(StrEnum):
    """What becomes of AnyRes's newlines where a method selects before the LLM."""

    keep = "keep"
    drop = "drop"


class BudgetKind(StrEnum):
    """What a budget counts for methods that cut inside the LLM."""

    mean = "mean"
    final = "final"


class Format(StrEnum):
    """How tables are written."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


class Table(StrEnum):
    """Which of the paper's tables: 1 LLaVA-1.5, 2 LLaVA-NeXT, 3 Qwen2.5-VL, 4 efficiency, 5 ablation."""

    one = "1"
    two = "2"
    three = "3"
    four = "4"
    five = "5"
    all = "all"


class Beside(StrEnum):
    """Whose numbers stand beside ours."""

    paper = "paper"


class Subset(StrEnum):
    """Part of a benchmark that is scored apart."""

    hard = "hard"


class AskedAs(StrEnum):
    """Whose prompts are asked: they differ in TextVQA's OCR tokens."""

    lmms_eval = "lmms-eval"
    llava = "llava"


class Sweep(StrEnum):
    """What a profile varies."""

    visual_tokens = "visual-tokens"


class Scale(StrEnum):
    """How long the toy recipe trains."""

    small = "small"
    full = "full"


Manifest = Annotated[Path | None, typer.Argument(help="A manifest file, or the name of a shipped one.")]
MethodName = Annotated[str | None, typer.Option("--method", help="Method to run; see `dpbench list methods`.")]
Several = Annotated[list[str] | None, typer.Option("--method", help="Methods, comma-separated; all by default.")]
Params = Annotated[list[str] | None, typer.Option("--param", help="Hyper-parameter of the method, as name=value.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="Backbone; see `dpbench list backbones`.")]
Weights = Annotated[str | None, typer.Option(help="Folder or hub repository in place of the default; or random.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub repository.")]
Quantized = Annotated[Quantize | None, typer.Option("--quantize", help="Pack weights, to fit a smaller GPU.")]
Placed = Annotated[DeviceMap | None, typer.Option("--device-map", help="auto: spread layers over GPUs and CPU.")]
Keep = Annotated[int | None, typer.Option(help="Visual tokens to keep per image.")]
PruneRate = Annotated[float | None, typer.Option(help="Share of the visual tokens to remove, 0 to 1.")]
Kind = Annotated[BudgetKind | None, typer.Option("--budget-kind", help="In-LLM budgets: layer mean, or what is left.")]
Kernel = Annotated[Attention | None, typer.Option("--attention", help="Attention kernel.")]
Conversation = Annotated[Prompt | None, typer.Option("--prompt", help="Conversation; by default the backbone's own.")]
Views = Annotated[Anyres | None, typer.Option("--anyres", help="LLaVA-NeXT: budget per view, or over all views.")]
Newlines = Annotated[Newline | None, typer.Option("--newline", help="LLaVA-NeXT: newlines beside selected tokens.")]
MinPixels = Annotated[int | None, typer.Option(help="Qwen2.5-VL: smaller images are enlarged.")]
MaxPixels = Annotated[int | None, typer.Option(help="Qwen2.5-VL: larger images are shrunk.")]
Tasks = Annotated[list[str] | None, typer.Option("--tasks", help="Benchmarks, comma-separated; all ten by default.")]
TaskNames = Annotated[list[str] | None, typer.Argument(metavar="TASK", help="Benchmarks; all ten by default.")]
Limit = Annotated[int | None, typer.Option(help="Answer at least so many samples a task, in whole groups.")]
Protocol = Annotated[
    AskedAs | None,
    typer.Option(
        "--protocol", help="llava: TextVQA with OCR tokens in the prompt, as LLaVA's own 58.2; lmms-eval: without."
    ),
]
HardSubset = Annotated[
    Subset | None,
    typer.Option("--subset", help="hard: what downsample gets wrong and none right, by this run's finished cells."),
]
BatchSize = Annotated[str | None, typer.Option(help="Samples answered at once: a number, or auto.")]
FeatureCache = Annotated[
    str,
    typer.Option(
        "--feature-cache",
        help="Memory, on the model's device, for images that were encoded, to ask more about them; 0 keeps none.",
    ),
]
NumShards = Annotated[int | None, typer.Option(help="Split the samples over so many processes; then dpbench merge.")]
ShardNumber = Annotated[int | None, typer.Option("--shard", help="Which of them this is, from 0.")]
SampleTimeout = Annotated[
    float | None,
    typer.Option("--sample-timeout", min=0.001, metavar="SECONDS", help="Give up samples that take longer."),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Refuse, rather than wait, where another dpbench runs this.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the benchmarks' data; DPBENCH_DATA by default.")]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
RunFolders = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN", help="Run folders; all under results/ by default.")
]
Runs = Annotated[list[Path] | None, typer.Option("--run", help="A run folder, as RUN.")]
