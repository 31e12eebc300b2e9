"""`dpbench toy`: build the embedded backbone and its benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli.options import Device, Scale

app = typer.Typer(help="Build the embedded backbone and its benchmarks.", no_args_is_help=True)


@app.command("build")
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
    from dpbench.machine.device import pick_device
    from dpbench.storage import files
    from dpbench.toy.build import build

    files.check_writable(out)
    pick_device(device.value)
    build(out, seed=seed, scale=scale.value, device=device.value, compiled=compiled)


@app.command("data")
def toy_data(
    out: Annotated[Path, typer.Option(help="Folder for the data root.")] = Path("toy-data"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """Write the ten toy benchmarks as a data root."""
    from dpbench.storage import files
    from dpbench.toy.mirror import build

    files.check_writable(out)
    for path in build(out, seed):
        typer.echo(str(path))


@app.command("bars")
def toy_bars(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run of toy-full.")] = Path("results/toy-full"),
    named: Annotated[Path | None, typer.Option("--run", hidden=True, help="Like RUN.")] = None,
    device: Device = Device.auto,
) -> None:
    """Print what toy-llava scores, what guessing scores, what random retains and where CLS looks."""
    from dpbench import backbones
    from dpbench.machine.device import pick_device
    from dpbench.tasks.data.root import toy_data_root
    from dpbench.toy import bars

    backbone = backbones.load("toy-llava", device=pick_device(device.value))
    typer.echo(bars.render(bars.bars(named or run, toy_data_root(), backbone)))
