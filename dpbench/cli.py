"""The command line. Thin: each command hands over to a module it imports itself, so that help and lists are instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpbench import stopping
from dpbench.errors import DpbenchError
from dpbench.options import (
    BackboneName,
    BatchSize,
    Beside,
    Conversation,
    DataRoot,
    Device,
    Dtype,
    FeatureCache,
    Format,
    HardSubset,
    Keep,
    Kernel,
    Kind,
    Limit,
    Manifest,
    MaxPixels,
    MethodName,
    MinPixels,
    Newlines,
    NoWait,
    NumShards,
    Out,
    Params,
    Placed,
    Protocol,
    PruneRate,
    Quantized,
    Revision,
    RunFolders,
    Runs,
    SampleTimeout,
    Scale,
    Several,
    ShardNumber,
    Subset,
    Sweep,
    Table,
    TaskNames,
    Tasks,
    TrainDtype,
    Variant,
    Views,
    Weights,
)

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
data_app = typer.Typer(help="Fetch the benchmarks' data and check it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(toy_app, name="toy")


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
    subset: HardSubset = None,
    asked_as: Protocol = None,
    batch_size: BatchSize = None,
    feature_cache: FeatureCache = "4GiB",
    num_shards: NumShards = None,
    shard: ShardNumber = None,
    sample_timeout: SampleTimeout = None,
    no_wait: NoWait = False,
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
    """Answer and score every cell that has no record yet; `accelerate launch -m dpbench run ...` uses several GPUs."""
    from dpbench import flags, merging, runner, sharding

    given = flags.given(locals())
    wanted, mine = flags.manifest(manifest, given), sharding.chosen(num_shards, shard)
    root, size = flags.data_root(wanted, data_root), flags.num_bytes(feature_cache)
    if dry_run:
        typer.echo(flags.describe(runner.plan(wanted, out, root)))
        return
    settings = {"device": device, "feature_cache": size, "wait": not no_wait, "sample_timeout": sample_timeout}
    outcome = merging.run(wanted, out, root, mine, **settings)
    typer.echo(flags.summary(outcome, out / wanted.name, mine), err=True)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of the run: results/<its name>.")],
    data_root: DataRoot = None,
) -> None:
    """Join what `dpbench run --num-shards S --shard I` left; score and record what is complete."""
    from dpbench import flags, merging

    outcome = merging.merge(run, flags.data_root(merging.manifest_of(run), data_root))
    typer.echo(flags.summary(outcome, run), err=True)
    raise typer.Exit(1 if outcome.failed else 0)


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
    method: Several = None,
    param: Params = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    revision: Revision = None,
    quantize: Quantized = None,
    device_map: Placed = None,
    keep: Annotated[list[str] | None, typer.Option(help="Visual tokens to keep; several with commas.")] = None,
    prune_rate: Annotated[list[str] | None, typer.Option(help="Share to remove; several with commas.")] = None,
    budget_kind: Kind = None,
    device: Device = Device.auto,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights.")] = None,
    attention: Kernel = None,
    prompt: Conversation = None,
    anyres: Views = None,
    newline: Newlines = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    batch_size: Annotated[
        list[str] | None, typer.Option(help="Prompts at once; several with commas. [default: 1]")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 336 or HEIGHTxWIDTH.")] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Positions of the prompt outside its images.")] = 66,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Repetitions kept, at least. [default: 50; 5 in a sweep]")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Spent in each method, at least. [default: 10; 2 for toy-llava]")
    ] = None,
    warmups: Annotated[int, typer.Option(min=0, help="Repetitions before, at least, until times are stable.")] = 5,
    answers: Annotated[int, typer.Option(min=0, help="Whole answers decoded by each method; 0: none.")] = 3,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also with torch.compile, as a table of its own.")
    ] = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Also with CUDA graphs, likewise.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="Vary the number of images in a prompt.")] = None,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count FLOPs from shapes; no weights, no times.")
    ] = False,
    out: Out = Path("results"),
) -> None:
    """Measure encode, reduce, splice and prefill of each method, decoding, memory and energy, and count FLOPs."""
    from dpbench.measure import settings

    typer.echo(settings.profile(locals()))


@app.command()
def report(
    runs: RunFolders = None,
    run: Runs = None,
    table: Annotated[Table, typer.Option(help="As the paper numbers them: 4 efficiency, 5 ablation.")] = Table.all,
    format: Annotated[Format, typer.Option("--format", help="How tables are written.")] = Format.markdown,
    out: Annotated[Path | None, typer.Option(help="File to write; the terminal by default.")] = None,
    compare: Annotated[Beside | None, typer.Option(help="Set the paper's numbers beside ours.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's tables alone, averages recomputed.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="What changed from a first RUN to a second.")] = False,
    subset: Annotated[Subset | None, typer.Option(help="Questions scored apart, beside the whole.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures, as PDF, SVG and PNG.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Zip file for page, tables, records and hashes.")] = None,
    max_mb: Annotated[float, typer.Option(min=1, help="Most that a page may take; samples are left out first.")] = 20,
    data_root: DataRoot = None,
) -> None:
    """Print the tables of finished runs: scores, intervals, efficiency; or a page, or a file to send."""
    from dpbench.report import tables

    text = tables.from_options(locals())
    if figures is not None:
        from dpbench.report import figures as drawing

        drawn = drawing.write([*(runs or ()), *(run or ())] or tables.runs_under(tables.RESULTS), figures)
        typer.echo(f"{figures}: {len(drawn)} files", err=True)
    if out is None:
        typer.echo(text)
    else:
        tables.save(out, text)


@app.command()
def visualize(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    method: Annotated[list[str], typer.Option("--method", help="Methods, comma-separated.")],
    backbone: Annotated[str, typer.Option("--backbone", help="Backbone; see `dpbench list backbones`.")] = "toy-llava",
    keep: Keep = None,
    prune_rate: PruneRate = None,
    question: Annotated[str, typer.Option(help="What methods that read it are asked.")] = "Describe the image.",
    show: Annotated[list[str] | None, typer.Option(help="Rows: kept, lowest, scores, similarity.")] = None,
    weights: Weights = None,
    revision: Revision = None,
    device: Device = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = Dtype.float32,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("kept.png"),
) -> None:
    """Draw what methods keep of an image, side by side."""
    from dpbench import visualize as kept

    drawn = kept.picture(
        image,
        method,
        backbone,
        out,
        keep=keep,
        prune_rate=prune_rate,
        question=question,
        show=show,
        weights=weights,
        revision=revision,
        device=device.value,
        dtype=dtype.value,
    )
    typer.echo(drawn, err=True)


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


@app.command()
def doctor(data_root: DataRoot = None) -> None:
    """Print what this machine can do, and what is missing for each command."""
    from dpbench import doctor as examination
    from dpbench import flags

    typer.echo(examination.report(flags.given_root(data_root)))


@list_app.command("methods")
def list_methods(
    cited: Annotated[bool, typer.Option("--cited", help="Systems that are cited and not run, and why.")] = False,
) -> None:
    """List the installed methods."""
    from dpbench import cited as papers
    from dpbench import flags, registry

    if cited:
        rows = [(name, f"{each.reason} ({each.paper})") for name, each in papers.cited().items()]
    else:
        rows = [(name, registry.summary(name)) for name in registry.methods()]
    typer.echo(flags.two_columns(rows))


@list_app.command("backbones")
def list_backbones() -> None:
    """List the backbones."""
    from dpbench import flags

    typer.echo(flags.backbone_table())


@list_app.command("tasks")
def list_tasks(data_root: DataRoot = None) -> None:
    """List the benchmarks: data and whether it is there, size, metric, and what a score may be compared to."""
    from dpbench import flags

    typer.echo(flags.task_table(flags.given_root(data_root)))


@list_app.command("manifests")
def list_manifests() -> None:
    """List the shipped manifests."""
    from dpbench import flags, manifest_file

    typer.echo(flags.two_columns((name, flags.first_comment(path)) for name, path in manifest_file.shipped().items()))


@data_app.command("pull")
def data_pull(
    task: TaskNames = None,
    to: Annotated[
        Path | None, typer.Option(envvar="DPBENCH_DATA", help="Data root to fill; the hub's cache by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch; the pinned commit by default.")] = None,
) -> None:
    """Fetch the files that the benchmarks read from the hub; a broken download goes on."""
    from dpbench.data.pull import pull

    for pulled in pull(task or (), to, revision):
        typer.echo(f"{pulled.origin.label}: {len(pulled.origin.files)} files, {pulled.size}, in {pulled.folder}")


@data_app.command("verify")
def data_verify(
    task: TaskNames = None,
    data_root: DataRoot = None,
    revision: Annotated[str | None, typer.Option(help="Commit it must be of; any; by default the pinned.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Decode a few images of each file instead of all.")] = False,
) -> None:
    """Check files, revision, hashes, columns, rows and images of the benchmarks' data."""
    from dpbench import flags
    from dpbench.data.verify import render, verify

    verdicts = verify(task or (), flags.given_root(data_root), revision=revision, quick=quick)
    typer.echo(render(verdicts))
    raise typer.Exit(1 if any(each.problems for each in verdicts) else 0)


@toy_app.command("build")
def toy_build(
    out: Annotated[Path, typer.Option(help="Folder for the weights; stages found there are not run again.")] = Path(
        "toy"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    scale: Annotated[Scale, typer.Option(help="small: about 90 minutes on 2 cores; full: for a GPU.")] = Scale.small,
    device: Device = Device.auto,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the decoder's layers; takes a compiler.")
    ] = False,
) -> None:
    """Train toy-llava from nothing: vision tower, then projector and decoder."""
    from dpbench import runner, storage
    from dpbench.toy.build import build

    storage.check_writable(out)
    runner.pick_device(device.value)
    build(out, seed=seed, scale=scale.value, device=device.value, compiled=compiled)


@toy_app.command("data")
def toy_data(
    out: Annotated[Path, typer.Option(help="Folder for the data root.")] = Path("toy-data"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """Write the ten toy benchmarks as a data root."""
    from dpbench import storage
    from dpbench.toy.mirror import build

    storage.check_writable(out)
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
    """Run the command line; errors meant for the user print as one sentence, and what was stopped says what goes on."""
    try:
        with stopping.terminable():
            app()
    except DpbenchError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        typer.echo(f"ConfigError: {error.filename}: {error.strerror}; give another path, or mend that one", err=True)
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code in (stopping.INTERRUPTED, stopping.TERMINATED):
            typer.echo(stopping.said(sys.argv[1:]), err=True)
        raise
