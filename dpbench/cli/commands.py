"""The commands. Each builds a typed request and hands it to a module it imports itself, so that help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpbench import __version__
from dpbench.cli import (
    data_commands,
    list_commands,
    messages,
    picture_options,
    probe_commands,
    profile_options,
    result,
    toy_commands,
    train_options,
)
from dpbench.cli.flags import Given, with_flags
from dpbench.cli.options import (
    PANELS,
    BackboneName,
    Beside,
    CheckedMethod,
    DataRoot,
    Device,
    DryRun,
    FeatureCache,
    Format,
    Keep,
    Keeps,
    Kind,
    Manifest,
    Methods,
    NoWait,
    NumShards,
    OnDevice,
    Out,
    Params,
    PruneRate,
    PruneRates,
    RequiredManifest,
    RunFolders,
    Runs,
    ShardNumber,
    Subset,
    Table,
    Tasks,
)
from dpbench.diffprune.recipe import Recipe
from dpbench.errors import DpbenchError
from dpbench.machine import stopping
from dpbench.machine.device import sleep_while_waiting
from dpbench.manifest.schema import BackboneEntry, Protocol

app = typer.Typer(
    name="dpbench",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
app.add_typer(list_commands.app, name="list")
app.add_typer(data_commands.app, name="data")
app.add_typer(probe_commands.app, name="probe")
app.add_typer(toy_commands.app, name="toy")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dpbench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, compare and time visual-token pruning methods for vision-language models."""


@app.command(epilog="Example: dpbench run --method holov --backbone toy-llava --keep 32")
@with_flags(panels=PANELS, backbone_fields=BackboneEntry, protocol=Protocol)
def run(
    manifest: Manifest = None,
    method: Methods = None,
    param: Params = None,
    backbone: BackboneName = None,
    *,
    tasks: Tasks = None,
    keep: Keeps = None,
    prune_rate: PruneRates = None,
    budget_kind: Kind = None,
    backbone_fields: Given,
    protocol: Given,
    feature_cache: FeatureCache = "4GiB",
    num_shards: NumShards = None,
    shard: ShardNumber = None,
    no_wait: NoWait = False,
    device: OnDevice = Device.auto,
    data_root: DataRoot = None,
    out: Out = Path("results"),
    dry_run: DryRun = False,
) -> None:
    """Answer and score every cell that has no record yet; `accelerate launch -m dpbench run ...` uses several GPUs."""
    from dpbench.cli import arguments, plan_arguments
    from dpbench.evaluation import launch, sharding

    flags = arguments.CellFlags(
        methods=arguments.split_names(method or []),
        params=param or [],
        backbone=backbone,
        keep=arguments.split_numbers("--keep", keep or [], int),
        prune_rate=arguments.split_numbers("--prune-rate", prune_rate or [], float),
        budget_kind=budget_kind,
        tasks=arguments.split_names(tasks) if tasks is not None else None,
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    grid, part = arguments.build_manifest(manifest, flags), sharding.requested_shard(num_shards, shard)
    root, cache = arguments.find_data_root(grid, data_root), arguments.parse_bytes("--feature-cache", feature_cache)
    if manifest is not None and (overrides := messages.format_overrides(grid, flags)):
        typer.echo(overrides, err=True)
    if dry_run:
        typer.echo(plan_arguments.format_estimate(grid, out, root, sys.argv[2:], list_cells=True))
        return
    outcome = launch.run(grid, out, root, part, device=device.value, feature_cache=cache, wait=not no_wait)
    if told := messages.format_outcome(outcome, out / grid.name, part):
        typer.echo(told, err=True)
    result.show(outcome, out / grid.name, part)
    raise typer.Exit(0 if outcome.is_complete else 1)


@app.command("plan", epilog="Example: dpbench plan table1-lite --measure")
@with_flags(panels=PANELS, backbone_fields=BackboneEntry, protocol=Protocol)
def plan_run(
    manifest: RequiredManifest,
    backbone: BackboneName = None,
    *,
    tasks: Tasks = None,
    backbone_fields: Given,
    protocol: Given,
    device: OnDevice = Device.auto,
    data_root: DataRoot = None,
    out: Out = Path("results"),
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine with random weights, in about two minutes.")
    ] = False,
) -> None:
    """Print what a run would take: answers, downloads, memory, hours, and the missing steps; needs nothing of them."""
    from dpbench.cli import arguments, plan_arguments

    flags = arguments.CellFlags(
        backbone=backbone,
        tasks=arguments.split_names(tasks) if tasks is not None else None,
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    grid = arguments.build_manifest(manifest, flags)
    root, measured_on = arguments.find_data_root(grid, data_root), device.value if measure else None
    typer.echo(plan_arguments.format_estimate(grid, out, root, sys.argv[2:], measure=measured_on))


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of the run: results/<its name>.")],
    data_root: DataRoot = None,
) -> None:
    """Join the answers of `dpbench run --num-shards S --shard I`; score and record complete cells."""
    from dpbench.cli import arguments
    from dpbench.evaluation import merging

    outcome = merging.merge(run, arguments.find_data_root(merging.load_run_manifest(run), data_root))
    if told := messages.format_outcome(outcome, run):
        typer.echo(told, err=True)
    result.show(outcome, run)
    raise typer.Exit(0 if outcome.is_complete else 1)


@app.command(epilog="Example: dpbench train --backbone toy-llava --steps 500 --out scorer")
@with_flags(panels=train_options.PANELS, settings=Recipe)
def train(
    backbone: train_options.Backbone,
    *,
    settings: Given,
    param: train_options.Params = None,
    resume: train_options.Resume = False,
    device: OnDevice = Device.auto,
    out: train_options.Out = None,
) -> None:
    """Train a DiffPrune scorer on a frozen backbone."""
    from dpbench.cli import train_arguments

    recipe = train_arguments.build_recipe(backbone, settings, param or [])
    from dpbench.diffprune.train import train as train_scorer

    ended = train_scorer(recipe, train_arguments.scorer_folder(recipe, out), resume=resume, device=device.value)
    if ended.is_main_process:
        typer.echo(messages.format_training(recipe, ended), err=True)


@app.command(epilog="Example: dpbench profile --methods none,fastv --keep 16,32 --flops-only")
@with_flags(
    panels=PANELS,
    backbone_fields=BackboneEntry,
    protocol=Protocol,
    without=("batch_size", "limit", "ocr", "wording", "reading"),
)
def profile(
    manifest: Manifest = None,
    method: Methods = None,
    param: Params = None,
    backbone: BackboneName = None,
    *,
    keep: Keeps = None,
    prune_rate: PruneRates = None,
    budget_kind: Kind = None,
    backbone_fields: Given,
    protocol: Given,
    device: OnDevice = Device.auto,
    batch_size: profile_options.BatchSizes = None,
    image_size: profile_options.ImageSize = None,
    text_tokens: profile_options.TextTokens = 66,
    repetitions: profile_options.Repetitions = None,
    seconds: profile_options.Seconds = None,
    warmups: profile_options.Warmups = 5,
    answers: profile_options.Answers = 3,
    compiled: profile_options.Compiled = False,
    cuda_graph: profile_options.CudaGraph = False,
    sweep: profile_options.VisualSweep = None,
    flops_only: profile_options.FlopsOnly = False,
    verify: profile_options.Verify = False,
    out: profile_options.Out = None,
) -> None:
    """Measure encode, reduce, splice and prefill of each method, decoding, memory and energy, and count FLOPs."""
    from dpbench.cli import arguments, profile_arguments

    flags = arguments.CellFlags(
        methods=arguments.split_names(method or []),
        params=param or [],
        backbone=backbone,
        keep=arguments.split_numbers("--keep", keep or [], int),
        prune_rate=arguments.split_numbers("--prune-rate", prune_rate or [], float),
        budget_kind=budget_kind,
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    profile_flags = profile_arguments.ProfileFlags(
        batch_size=batch_size or [],
        image_size=image_size,
        text_tokens=text_tokens,
        repetitions=repetitions,
        seconds=seconds,
        warmups=warmups,
        answers=answers,
        compiled=compiled,
        cuda_graph=cuda_graph,
        sweep="visual-tokens" if sweep else None,
    )
    profile_arguments.check_verify(verify=verify, flops_only=flops_only)
    comparison = profile_arguments.build_comparison(manifest, flags)
    parts = [(part, profile_arguments.build_settings(part, profile_flags)) for part in comparison.parts()]
    if flops_only:
        from dpbench.measure.flops_file import write_flops

        result.show_tables(write_flops(parts, out, verify=verify))
        return
    if manifest is None:
        parts = [(profile_arguments.name_after_device(part, device.value), settings) for part, settings in parts]
    from dpbench.measure.profile import profile_manifest

    out = out or Path("results")
    for part, settings in parts:
        result.show_profiles(profile_manifest(part, out, settings, device=device.value), out / part.name)


@app.command(epilog="Example: dpbench report results/quickstart --format html --out page.html")
def report(
    runs: RunFolders = None,
    run: Runs = None,
    table: Annotated[Table, typer.Option(help="As the paper numbers them: 4 efficiency, 5 ablation.")] = Table.all,
    full: Annotated[bool, typer.Option("--full", help="Every table, in a terminal too.")] = False,
    format: Annotated[
        Format | None, typer.Option("--format", help="How every table is written. [default: markdown in a pipe]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, a folder for the tables of csv; the terminal by default.")
    ] = None,
    compare: Annotated[Beside | None, typer.Option(help="Set the paper's numbers beside ours.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's tables alone, averages recomputed.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="What changed from a first RUN to a second.")] = False,
    subset: Annotated[Subset | None, typer.Option(help="Questions scored apart, beside the whole.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures, as PDF, SVG and PNG.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Zip file for page, tables, records and hashes.")] = None,
    max_mb: Annotated[float, typer.Option(min=1, help="Most that a page may take; samples are left out first.")] = 20,
    data_root: DataRoot = None,
) -> None:
    """Print what finished runs found, or all their tables: scores, intervals, efficiency; a page, or a file to send."""
    from dpbench.report import request

    report_request = request.Request(
        folders=(*(runs or ()), *(run or ())),
        table=None if table is Table.all else int(table.value),
        full=full,
        form=format.value if format is not None else None,
        compare=compare is not None,
        paper=paper,
        diff=diff,
        hard=subset is not None,
        bundle=bundle,
        out=out,
        figures=figures,
        max_mb=max_mb,
        data_root=data_root,
    )
    text, notes = request.write(report_request)
    if text:
        typer.echo(text)
    for note in notes:
        typer.echo(note, err=True)


@app.command(epilog="Example: dpbench visualize photo.jpg --method holov,fastv --keep 32")
@with_flags(
    panels=PANELS,
    backbone_fields=BackboneEntry,
    protocol=Protocol,
    only=("weights", "revision", "dtype", "image_aspect"),
)
def visualize(
    image: picture_options.Image,
    manifest: picture_options.Manifest = None,
    method: Methods = None,
    backbone: picture_options.Backbone = None,
    *,
    question: picture_options.Question = "Describe the image.",
    keep: Keep = None,
    prune_rate: PruneRate = None,
    backbone_fields: Given,
    protocol: Given,
    device: OnDevice = Device.auto,
    show: picture_options.Rows = None,
    out: picture_options.Out = Path("kept.png"),
) -> None:
    """Draw what methods keep of an image, side by side."""
    from dpbench.cli import arguments, picture_arguments
    from dpbench.visualize.request import Request, check

    flags = arguments.CellFlags(
        methods=arguments.split_names(method or []),
        backbone=backbone,
        keep=[keep] if keep is not None else [],
        prune_rate=[prune_rate] if prune_rate is not None else [],
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    picture_request = Request(
        image=image,
        out=out,
        question=question,
        show=arguments.split_names(show or []),
        device=device.value,
        **picture_arguments.read_fields(manifest, flags),
    )
    check(picture_request)
    from dpbench.visualize.decisions import draw

    typer.echo(draw(picture_request), err=True)


@app.command(epilog="Example: dpbench check holov --backbone llava")
def check(
    method: CheckedMethod,
    param: Params = None,
    backbone: Annotated[list[str] | None, typer.Option(help="Miniature backbone to check on; all by default.")] = None,
    goldens: Annotated[Path | None, typer.Option(help="Folder with METHOD_*.npz vectors to run as well.")] = None,
) -> None:
    """Run the conformance suite on a method, and its golden vectors if there are some."""
    from dpbench.conformance.report import run_checks

    report = run_checks(method, param or [], backbone or (), goldens)
    typer.echo(messages.format_conformance(report))
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def doctor(data_root: DataRoot = None) -> None:
    """Print what this machine can do, and which weights, data and packages are missing."""
    from dpbench.cli import doctor as examination
    from dpbench.tasks.data.root import require_root

    typer.echo(examination.report(require_root(data_root), app))


def main() -> None:
    """Run the command line; a user error prints one sentence, a stopped command prints how to continue."""
    sleep_while_waiting()
    try:
        with stopping.exit_on_sigterm():
            app()
    except DpbenchError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        typer.echo(f"ConfigError: {error.filename}: {error.strerror}; give another path, or fix that one", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code in (stopping.INTERRUPTED, stopping.TERMINATED) and getattr(stop, "is_told", True):
            typer.echo(messages.format_stop(sys.argv[1:], getattr(stop, "flags", ())), err=True)
        raise
