"""The command line. Thin: each command hands over to a module it imports itself, so that help and lists are instant."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpbench.errors import DpbenchError

app = typer.Typer(
    name="dpbench",
    help="Train, compare and time visual-token pruning methods for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
list_app = typer.Typer(help="List what can be named on the command line.", no_args_is_help=True)
toy_app = typer.Typer(help="Build the embedded backbone and its benchmarks.", no_args_is_help=True)
app.add_typer(list_app, name="list")
app.add_typer(toy_app, name="toy")


INTERRUPTED = 130


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
    csv = "csv"


class Scale(StrEnum):
    """How long the toy recipe trains."""

    small = "small"
    full = "full"


Manifest = Annotated[Path | None, typer.Argument(help="A manifest file, or the name of a shipped one.")]
MethodName = Annotated[str | None, typer.Option("--method", help="Method to run; see `dpbench list methods`.")]
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
Limit = Annotated[int | None, typer.Option(help="Answer at least so many samples a task, in whole groups.")]
BatchSize = Annotated[str | None, typer.Option(help="Samples answered at once: a number, or auto.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the benchmarks' data; DPBENCH_DATA by default.")]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
Runs = Annotated[list[Path] | None, typer.Option("--run", help="Run folder to report; all under results/ by default.")]


@app.command()
def run(
    manifest: Manifest = None,
    method: MethodName = None,
    param: Params = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    revision: Revision = None,
    quantize: Quantized = None,
    device_map: Placed = None,
    keep: Keep = None,
    prune_rate: PruneRate = None,
    budget_kind: Kind = None,
    tasks: Tasks = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = Device.auto,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights.")] = None,
    attention: Kernel = None,
    prompt: Conversation = None,
    anyres: Views = None,
    newline: Newlines = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    data_root: DataRoot = None,
    out: Out = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and run nothing.")] = False,
) -> None:
    """Answer and score every cell that has no record yet."""
    from dpbench import flags, runner

    given = flags.given(locals())
    wanted = flags.manifest(manifest, given)
    root = flags.data_root(wanted, data_root)
    if dry_run:
        typer.echo(flags.describe(runner.plan(wanted, out, root)))
        return
    outcome = runner.run(wanted, out, root, device=device)
    typer.echo(flags.summary(outcome, out / wanted.name), err=True)
    raise typer.Exit(1 if outcome.num_failed else 0)


@app.command()
def train(
    backbone: Annotated[str, typer.Option("--backbone", help="Backbone to train a scorer for.")],
    variant: Annotated[Variant, typer.Option(help="DiffPrune, or a control of its ablations.")] = Variant.diffprune,
    keep: Annotated[str | None, typer.Option(help="Budgets: 64, or 64,128,192, or shares as 0.05-0.4.")] = None,
    data: Annotated[str | None, typer.Option(help="Image-caption pairs: toy, folder, *.parquet, *.tar, hub.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the scorer; scorers/<backbone> by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; one epoch by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and noise.")] = None,
    weights: Weights = None,
    revision: Revision = None,
    dtype: Annotated[TrainDtype | None, typer.Option(help="Type of the frozen backbone.")] = None,
    device: Device = Device.auto,
    param: Annotated[
        list[str] | None, typer.Option("--param", help="Any setting of the recipe, as name=value.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
) -> None:
    """Train a DiffPrune scorer on a frozen backbone."""
    from dpbench import flags
    from dpbench.diffprune.train import train as train_scorer

    recipe = flags.recipe(locals())
    ended = train_scorer(recipe, flags.scorer_folder(recipe, out), resume=resume, device=device.value)
    typer.echo(flags.trained(recipe, ended), err=True)


@app.command()
def profile(
    manifest: Manifest = None,
    method: MethodName = None,
    param: Params = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    revision: Revision = None,
    quantize: Quantized = None,
    device_map: Placed = None,
    keep: Keep = None,
    prune_rate: PruneRate = None,
    budget_kind: Kind = None,
    device: Device = Device.auto,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights.")] = None,
    attention: Kernel = None,
    prompt: Conversation = None,
    anyres: Views = None,
    newline: Newlines = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions kept.")] = 30,
    warmups: Annotated[int, typer.Option(min=0, help="Repetitions run before and not kept.")] = 5,
    out: Out = Path("results"),
) -> None:
    """Time encode, reduce and prefill of each method on one question, and count FLOPs."""
    from dpbench import flags
    from dpbench.measure.profile import profile_manifest
    from dpbench.report import tables

    given = flags.given(locals())
    wanted = flags.manifest(manifest, given)
    profiles = profile_manifest(wanted, out, device=device, repeats=repeats, warmups=warmups)
    for section in tables.profile_sections(profiles):
        typer.echo(tables.render(section, "markdown"))


@app.command()
def report(
    run: Runs = None,
    format: Annotated[Format, typer.Option("--format", help="How tables are written.")] = Format.markdown,
) -> None:
    """Print the comparison tables of finished runs, then the profiles."""
    from dpbench.report import tables

    typer.echo(tables.report(run or tables.runs_under(Path("results")), format.value))


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A registered method, yours or one that is shipped.")],
    param: Params = None,
    backbone: Annotated[list[str] | None, typer.Option(help="Miniature backbone to check on; all by default.")] = None,
    goldens: Annotated[Path | None, typer.Option(help="Folder with METHOD_*.npz vectors to run as well.")] = None,
) -> None:
    """Run the conformance suite on a method, and its golden vectors if there are some."""
    from dpbench import flags

    lines, passed = flags.conformance(method, param or [], tuple(backbone or ()), goldens)
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if passed else 1)


@list_app.command("methods")
def list_methods() -> None:
    """List the installed methods."""
    from dpbench import flags, registry

    typer.echo(flags.two_columns((name, registry.summary(name)) for name in registry.methods()))


@list_app.command("backbones")
def list_backbones() -> None:
    """List the backbones."""
    from dpbench import flags

    typer.echo(flags.backbone_table())


@list_app.command("tasks")
def list_tasks() -> None:
    """List the benchmarks, with the data they read."""
    from dpbench import flags, tasks

    typer.echo(
        flags.two_columns(
            (name, f"{t.repository}/{t.config}, {t.split}: {t.metric}") for name, t in tasks.TASKS.items()
        )
    )


@list_app.command("manifests")
def list_manifests() -> None:
    """List the shipped manifests."""
    from dpbench import flags, manifest

    typer.echo(flags.two_columns((name, flags.first_comment(path)) for name, path in manifest.shipped().items()))


@toy_app.command("build")
def toy_build(
    out: Annotated[Path, typer.Option(help="Folder for the weights; stages found there are not run again.")] = Path(
        "toy"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    scale: Annotated[Scale, typer.Option(help="small: about 90 minutes on 2 cores; full: for a GPU.")] = Scale.small,
    device: Device = Device.auto,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the decoder's layers; takes a compiler.")
    ] = False,
) -> None:
    """Train toy-llava from nothing: vision tower, then projector and decoder."""
    from dpbench.toy.build import build

    build(out, seed=seed, scale=scale.value, device=device.value, compiled=compiled)


@toy_app.command("data")
def toy_data(
    out: Annotated[Path, typer.Option(help="Folder for the data root.")] = Path("toy-data"),
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Write the ten toy benchmarks as a data root."""
    from dpbench.toy.mirror import build

    for path in build(out, seed):
        typer.echo(str(path))


@toy_app.command("bars")
def toy_bars(
    run: Annotated[Path, typer.Option(help="Finished run of toy-full.")] = Path("results/toy-full"),
    device: Device = Device.auto,
) -> None:
    """Print what toy-llava scores, what guessing scores, what random retains and where CLS looks."""
    from dpbench import backbones, flags, runner
    from dpbench.toy import bars

    backbone = backbones.load("toy-llava", device=runner.pick_device(device.value))
    typer.echo(bars.render(bars.bars(run, flags.toy_data_root(), backbone)))


def main() -> None:
    """Run the command line; errors meant for the user print as one sentence and exit with 2."""
    try:
        app()
    except DpbenchError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            typer.echo("stopped; what was finished is kept, the same command goes on from there", err=True)
        raise
