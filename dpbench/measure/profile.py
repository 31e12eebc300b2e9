"""Where the milliseconds, FLOPs, bytes and joules of every method go, up to the first token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpbench import backbones, registry
from dpbench.backbones.base import Backbone
from dpbench.errors import ConfigError, DpbenchError
from dpbench.machine import nvml
from dpbench.machine.device import pick_device
from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.cell import Cell
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.schema import Manifest
from dpbench.measure import energy, roofline
from dpbench.measure.first_token import FirstToken, charge_reduce
from dpbench.measure.interleave import Run, Series, interleave
from dpbench.measure.profile_row import ProfiledMethod, ProfileSession, build_row
from dpbench.measure.settings import Configuration, Settings, cells_to_measure, sweep_steps
from dpbench.measure.synthetic_prompts import PromptShape, usual_size
from dpbench.measure.timing import Recorder, clock_of
from dpbench.method import Method
from dpbench.storage import files, record
from dpbench.storage.record import Profile

VERSIONS_PER_LAYER = 4
"""Compiled versions of a layer that dynamo may need: for lengths of the prompt, and an empty cache or a filled one."""


def profile_manifest(manifest: Manifest, out: Path, settings: Settings, *, device: str = "auto") -> list[Profile]:
    """Profile each (method, budget) of a manifest and append to `profile.jsonl` in the run's folder.

    Args:
        manifest: its tasks and limits do not matter here.
        out: results folder.
        settings: how to run.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: `out` is not writable, or CUDA graphs on a CPU.
        MissingError: weights are missing.
        DpbenchError: no method of the manifest can run here.
    """
    files.check_writable(out)
    device, console = pick_device(device), Console(stderr=True)
    if "cuda-graph" in settings.configurations and not device.startswith("cuda"):
        raise ConfigError("--cuda-graph: a CPU has no CUDA graphs; remove it, or run on a GPU")
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
    machine = {"versions": versions(), **environment(device)}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    path = out / manifest.name / "profile.jsonl"
    profiles = []
    with torch.inference_mode(), nvml.open_gpu() if device.startswith("cuda") else nullcontext() as handle:
        rates = roofline.measure_rates(backbone.device, backbone.dtype)
        session = ProfileSession(backbone, settings, console, handle, machine, started, rates)
        session.idle_w = energy.idle_watts(handle) if handle else None
        for configuration in settings.configurations:
            for profile in _profile_configuration(session, manifest, configuration):
                record.append(path, profile)
                profiles.append(profile)
    console.print(f"{len(profiles)} rows added to {path}")
    return profiles


def _profile_configuration(
    session: ProfileSession, manifest: Manifest, configuration: Configuration
) -> Iterator[Profile]:
    with _compiled_layers(session.backbone, configuration):
        methods = _prepare_methods(session, manifest, configuration)
        all_series = _time_in_turn(session, methods)
        with _progress_bar(session.console) as bar:
            pairs = list(zip(methods, all_series, strict=True))
            for method, series in bar.track(pairs, description="bytes, joules"):
                yield build_row(session, method, series, configuration)


@contextmanager
def _compiled_layers(backbone: Backbone, configuration: Configuration) -> Iterator[None]:
    """Run the block with compiled layers of tower and decoder, if the configuration is "compile".

    Dynamo compiles a decoder layer again for each index into the cache: there are as many versions as layers.
    """
    layers = _find_layers(backbone) if configuration == "compile" else []
    for layer in layers:
        layer.compile()
    try:
        # The limit can only be set for the whole process; patch() is dynamo's own way to set and restore it.
        with torch._dynamo.config.patch(recompile_limit=VERSIONS_PER_LAYER * max(1, len(layers))):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = (
                None  # nn.Module.compile has no public undo, and eager rows must not be compiled
            )


def _find_layers(backbone: Backbone) -> list[Any]:
    decoder = set(backbone.decoder.modules())
    stacks = [module for module in backbone.core.modules() if isinstance(module, torch.nn.ModuleList)]
    towers = [stack for stack in stacks if stack not in decoder]
    return [*backbone.decoder.layers, *(max(towers, key=len) if towers else ())]


def _prepare_methods(session: ProfileSession, manifest: Manifest, configuration: Configuration) -> list[ProfiledMethod]:
    """Load the methods and run each once; one that cannot run on this backbone is reported and skipped."""
    methods, refusal = [], None
    graphed = configuration == "cuda-graph"
    for cell in cells_to_measure(manifest):
        try:
            method = _load_method(cell, session.backbone, graphed=graphed)
            for shape in _prompt_shapes(session.backbone.name, session.settings):
                first_token = FirstToken(session.backbone, method, cell, shape, graphed=graphed)
                first_token.run_untimed()
                methods.append(ProfiledMethod(cell, shape, first_token))
        except DpbenchError as error:
            refusal = error
            session.console.print(f"skipped: {cell.method} @ {cell.budget.label}: {error}")
    if not methods and refusal is not None:
        raise refusal
    return methods


def _load_method(cell: Cell, backbone: Backbone, *, graphed: bool) -> Method:
    method = registry.load(cell.method, cell.params)
    method = method.untrained() if cell.entry.weights == backbones.RANDOM else method
    return (method.graphed() if graphed else method).bind(backbone)


def _prompt_shapes(name: str, settings: Settings) -> Iterator[PromptShape]:
    base = PromptShape(image_hw=settings.image_hw or usual_size(name), text_tokens=settings.text_tokens)
    for batch_size in settings.batch_sizes:
        if settings.sweep is None:
            yield replace(base, batch_size=batch_size)
        else:
            for count, grid in sweep_steps(name):
                hw = base.image_hw if grid is None else _pixels(name, grid)
                text = base.text_tokens + count - 1  # every further image brings a line break
                yield replace(base, batch_size=batch_size, num_images=count, grid=grid, image_hw=hw, text_tokens=text)


def _pixels(name: str, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image that fills a grid smaller than the usual one of a fixed-size tower."""
    patch = usual_size(name)[0] // math.isqrt(backbones.find(name).num_visual or 1)
    return grid[0] * patch, grid[1] * patch


def _time_in_turn(session: ProfileSession, methods: Sequence[ProfiledMethod]) -> list[Series]:
    runs = [_build_run(session, method) for method in methods]
    settings = session.settings
    session.readings = []
    with _progress_bar(session.console) as bar:
        job = bar.add_task(f"timing {len(runs)} in turn", total=1.0)

        def after_round(share: float) -> None:
            bar.update(job, completed=share)
            _read_gpu(session)

        _read_gpu(session)
        all_series = interleave(
            runs,
            repetitions=settings.repetitions,
            seconds=settings.seconds,
            warmups=settings.warmups,
            after_round=after_round,
        )
        _read_gpu(session)
    return all_series


def _read_gpu(session: ProfileSession) -> None:
    if session.handle is not None:
        session.readings.append(nvml.read(session.handle))


def _build_run(session: ProfileSession, method: ProfiledMethod) -> Run:
    def run(turn: int) -> dict[str, float]:
        recorder = Recorder(clock_of(session.backbone.device))
        method.first_token.run(turn, recorder)
        return charge_reduce(recorder.ms())

    return run


def _progress_bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %, left:"),
        TimeRemainingColumn(),
        TextColumn("so far:"),
        TimeElapsedColumn(),
        console=console,
    )
