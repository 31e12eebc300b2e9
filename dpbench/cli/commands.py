"""The commands. Each builds a typed request and hands it to a module it imports itself, so that help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import data_commands, list_commands, messages, probe_commands, result, toy_commands
from dpbench.cli.flags import Given, with_flags
from dpbench.cli.options import (
    BackboneName,
    Beside,
    DataRoot,
    Device,
    FeatureCache,
    Format,
    Keep,
    Kind,
    Manifest,
    MethodName,
    NoWait,
    NumShards,
    Out,
    Params,
    PruneRate,
    RunFolders,
    Runs,
    Several,
    ShardNumber,
    Subset,
    Sweep,
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
    help="Train, compare and time visual-token pruning methods for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.add_typer(list_commands.app, name="list")
app.add_typer(data_commands.app, name="data")
app.add_typer(probe_commands.app, name="probe")
app.add_typer(toy_commands.app, name="toy")


@app.command()
@with_flags(backbone_fields=BackboneEntry, protocol=Protocol)
def run(
    manifest: Manifest = None,
    method: MethodName = None,
    param: Params = None,
    backbone: BackboneName = None,
    *,
    backbone_fields: Given,
    keep: Keep = None,
    prune_rate: PruneRate = None,
    budget_kind: Kind = None,
    tasks: Tasks = None,
    protocol: Given,
    feature_cache: FeatureCache = "4GiB",
    num_shards: NumShards = None,
    shard: ShardNumber = None,
    no_wait: NoWait = False,
    device: Device = Device.auto,
    data_root: DataRoot = None,
    out: Out = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and run nothing.")] = False,
) -> None:
    """Answer and score every cell that has no record yet; `accelerate launch -m dpbench run ...` uses several GPUs."""
    from dpbench.cli import arguments, plan_arguments
    from dpbench.evaluation import launch, sharding

    flags = arguments.CellFlags(
        methods=[method] if method is not None else [],
        params=param or [],
        backbone=backbone,
        keep=[keep] if keep is not None else [],
        prune_rate=[prune_rate] if prune_rate is not None else [],
        budget_kind=budget_kind,
        tasks=arguments.split_names(tasks) if tasks is not None else None,
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    grid, part = arguments.build_manifest(manifest, flags), sharding.requested_shard(num_shards, shard)
    root, cache = arguments.find_data_root(grid, data_root), arguments.parse_bytes("--feature-cache", feature_cache)
    if dry_run:
        typer.echo(plan_arguments.format_estimate(grid, out, root, sys.argv[2:], list_cells=True))
        return
    outcome = launch.run(grid, out, root, part, device=device.value, feature_cache=cache, wait=not no_wait)
    typer.echo(messages.format_outcome(outcome, out / grid.name, part), err=True)
    result.show(outcome, out / grid.name, part)
    raise typer.Exit(0 if outcome.is_complete else 1)


@app.command("plan")
@with_flags(backbone_fields=BackboneEntry, protocol=Protocol)
def plan_run(
    manifest: Annotated[Path, typer.Argument(help="A manifest file, or the name of a shipped one.")],
    backbone: BackboneName = None,
    *,
    backbone_fields: Given,
    tasks: Tasks = None,
    protocol: Given,
    device: Device = Device.auto,
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
    typer.echo(messages.format_outcome(outcome, run), err=True)
    result.show(outcome, run)
    raise typer.Exit(0 if outcome.is_complete else 1)


@app.command()
@with_flags(settings=Recipe)
def train(
    backbone: Annotated[str, typer.Option("--backbone", help="Backbone to train a scorer for.")],
    *,
    settings: Given,
    out: Annotated[Path | None, typer.Option(help="Folder for the scorer; scorers/<backbone> by default.")] = None,
    device: Device = Device.auto,
    param: Annotated[
        list[str] | None, typer.Option("--param", help="Any setting of the recipe, as name=value.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
) -> None:
    """Train a DiffPrune scorer on a frozen backbone."""
    from dpbench.cli import train_arguments
    from dpbench.diffprune.train import train as train_scorer

    recipe = train_arguments.build_recipe(backbone, settings, param or [])
    ended = train_scorer(recipe, train_arguments.scorer_folder(recipe, out), resume=resume, device=device.value)
    if ended.is_main_process:
        typer.echo(messages.format_training(recipe, ended), err=True)


@app.command()
@with_flags(
    backbone_fields=BackboneEntry, protocol=Protocol, without=("batch_size", "limit", "ocr", "wording", "reading")
)
def profile(
    manifest: Manifest = None,
    method: Several = None,
    param: Params = None,
    backbone: BackboneName = None,
    *,
    backbone_fields: Given,
    keep: Annotated[list[str] | None, typer.Option(help="Visual tokens to keep; several with commas.")] = None,
    prune_rate: Annotated[list[str] | None, typer.Option(help="Share to remove; several with commas.")] = None,
    budget_kind: Kind = None,
    protocol: Given,
    device: Device = Device.auto,
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
    answers: Annotated[int, typer.Option(min=0, help="Whole answers decoded by each method.")] = 3,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also with torch.compile, as a table of its own.")
    ] = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Also with CUDA graphs, likewise.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="Vary the number of images in a prompt.")] = None,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count FLOPs from shapes; no weights, no times.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --flops-only: count by torch and by fvcore as well.")
    ] = False,
    out: Out = Path("results"),
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
    name = "flops" if flops_only else profile_arguments.folder_name(device.value)
    for part in profile_arguments.build_comparison(manifest, flags, name).parts():
        settings = profile_arguments.build_settings(part, profile_flags)
        if flops_only:
            from dpbench.measure.flops_comparison_table import comparison_table
            from dpbench.measure.flops_table import flops_table

            typer.echo(comparison_table(part, settings) if verify else flops_table(part, settings))
            continue
        from dpbench.measure.profile import profile_table

        typer.echo(profile_table(part, out, settings, device=device.value))


@app.command()
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


@app.command()
@with_flags(backbone_fields=BackboneEntry, protocol=Protocol, only=("weights", "revision", "dtype", "image_aspect"))
def visualize(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Take backbone, methods and first budget from a manifest.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Methods, comma-separated.")] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Backbone; see `dpbench list backbones`. [default: toy-llava]")
    ] = None,
    *,
    backbone_fields: Given,
    keep: Keep = None,
    prune_rate: PruneRate = None,
    question: Annotated[str, typer.Option(help="What methods that read it are asked.")] = "Describe the image.",
    show: Annotated[list[str] | None, typer.Option(help="Rows: kept, lowest, scores, similarity.")] = None,
    protocol: Given,
    device: Device = Device.auto,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("kept.png"),
) -> None:
    """Draw what methods keep of an image, side by side."""
    from dpbench.cli import arguments, picture_arguments
    from dpbench.visualize import decisions

    flags = arguments.CellFlags(
        methods=arguments.split_names(method or []),
        backbone=backbone,
        keep=[keep] if keep is not None else [],
        prune_rate=[prune_rate] if prune_rate is not None else [],
        backbone_fields=backbone_fields,
        protocol=protocol,
    )
    picture_request = decisions.Request(
        image=image,
        out=out,
        question=question,
        show=arguments.split_names(show or []),
        device=device.value,
        **picture_arguments.read_fields(manifest, flags),
    )
    typer.echo(decisions.draw(picture_request), err=True)


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A registered method, yours or one that is shipped.")],
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

    typer.echo(examination.report(require_root(data_root)))


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
