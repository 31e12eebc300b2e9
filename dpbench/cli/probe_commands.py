"""`dpbench probe`: the paper's pilot studies as measurements; a stopped probe goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpbench.cli import probe_arguments, result
from dpbench.cli.flags import Given, with_flags
from dpbench.cli.options import Device
from dpbench.cli.probe_arguments import ProbeFlags

app = typer.Typer(help="Measure gradient coherence, loss landscape, and noise against removal.", no_args_is_help=True)

Params = Annotated[
    list[str] | None, typer.Option("--param", help="Any setting of the probe or of a training's recipe, as name=value.")
]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Folder of the records; results/probe-<backbone>.")]


@app.command()
@with_flags(flags=ProbeFlags)
def coherence(*, flags: Given, param: Params = None, device: Device = Device.auto, out: OutFolder = None) -> None:
    """Figure 1c: do gradients of different batches agree, and does a step along their mean help?"""
    _run("coherence", flags, param or [], device, out)


@app.command()
@with_flags(flags=ProbeFlags)
def landscape(*, flags: Given, param: Params = None, device: Device = Device.auto, out: OutFolder = None) -> None:
    """Figure 2: how rough is the loss along random directions in the scorer's weights?"""
    _run("landscape", flags, param or [], device, out)


@app.command()
@with_flags(flags=ProbeFlags, without=("variant",))
def noise(*, flags: Given, param: Params = None, device: Device = Device.auto, out: OutFolder = None) -> None:
    """Figure 4: does noise in place of tokens restrict the model as much as removing them?"""
    _run("noise", flags, param or [], device, out)


def _run(probe: str, flags: Given, params: list[str], device: Device, out: Path | None) -> None:
    settings, recipe_params = probe_arguments.build_settings(probe, flags, params)
    probe_arguments.check_site(flags, recipe_params)
    recipe = None if "classifier" in flags else probe_arguments.build_recipe(flags, recipe_params)
    from dpbench.probe import launch

    if recipe is not None:
        site = launch.at_projector(recipe)
    else:
        site = launch.at_patches(flags["classifier"], flags["data"], settings.seed)
    folder = probe_arguments.probe_folder(flags, out)
    result.show_tables(launch.launch(probe, site, settings, folder, device=device.value))
