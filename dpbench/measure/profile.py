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
from dpbench.errors import DpbenchError
from dpbench.machine import nvml
from dpbench.machine.device import pick_device
from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.cell import Cell
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.schema import Manifest
from dpbench.measure import energy, roofline
from dpbench.measure.first_token import FirstToken, net
from dpbench.measure.interleave import Run, Series, interleave
from dpbench.measure.profile_row import Bench, Subject, row
from dpbench.measure.settings import Configuration, Settings, once_each, steps
from dpbench.measure.synthetic_prompts import Inputs, usual_size
from dpbench.measure.timing import Recorder, clock_of
from dpbench.method import Method
from dpbench.report.tables import efficiency
from dpbench.report.tables.render import render_all
from dpbench.storage import files, record
from dpbench.storage.record import Profile

VERSIONS = 4
"""Of a compiled layer: lengths of the prompt, a cache that is empty or not."""


def profile_table(manifest: Manifest, out: Path, settings: Settings, *, device: str = "auto") -> str:
    """Profile a manifest and return the tables of efficiency as Markdown.

    Raises:
        ConfigError: nothing can be written to `out`.
        DpbenchError: see `profile_manifest`.
    """
    files.check_writable(out)
    profiles = profile_manifest(manifest, out, settings, device=device)
    return render_all(efficiency.sections(profiles), "markdown")


def profile_manifest(manifest: Manifest, out: Path, settings: Settings, *, device: str = "auto") -> list[Profile]:
    """Profile each (method, budget) of a manifest and append to `profile.jsonl` in the run's folder.

    Args:
        manifest: its tasks and limits do not matter here.
        out: results folder.
        settings: how to run.
        device: "auto", "cpu" or "cuda".

    Raises:
        MissingError: weights are not there.
        DpbenchError: no method of the manifest can run here.
    """
    device, console = pick_device(device), Console(stderr=True)
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
    found = {"versions": versions(), **environment(device)}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    path = out / manifest.name / "profile.jsonl"
    profiles = []
    with torch.inference_mode(), nvml.opened() if device.startswith("cuda") else nullcontext() as handle:
        rates = roofline.rates(backbone.device, backbone.dtype)
        bench = Bench(backbone, settings, console, handle, found, started, rates)
        bench.idle_w = energy.idle_watts(handle) if handle else None
        for configuration in settings.configurations:
            for each in _profiled(bench, manifest, configuration):
                record.append(path, each)
                profiles.append(each)
    console.print(f"{len(profiles)} rows added to {path}")
    return profiles


def _profiled(bench: Bench, manifest: Manifest, configuration: Configuration) -> Iterator[Profile]:
    with _configured(bench.backbone, configuration):
        subjects = _subjects(bench, manifest, configuration)
        series = _timed(bench, subjects)
        with _progress(bench.console) as bar:
            for subject, each in bar.track(list(zip(subjects, series, strict=True)), description="bytes, joules"):
                yield row(bench, subject, each, configuration)


@contextmanager
def _configured(backbone: Backbone, configuration: Configuration) -> Iterator[None]:
    """Compile the layers of tower and decoder for as long as it is asked for.

    A layer of the decoder is compiled anew for the place it has in the cache: there are as many versions as layers.
    """
    compiled = _layers(backbone) if configuration == "compile" else []
    for layer in compiled:
        layer.compile()
    try:
        # The limit can only be set for the whole process; patch() is dynamo's own way to set and restore it.
        with torch._dynamo.config.patch(recompile_limit=VERSIONS * max(1, len(compiled))):
            yield
    finally:
        for layer in compiled:
            layer._compiled_call_impl = (
                None  # nn.Module.compile has no public undo; without it eager rows stay compiled
            )


def _layers(backbone: Backbone) -> list[Any]:
    decoder = set(backbone.decoder.modules())
    stacks = [each for each in backbone.core.modules() if isinstance(each, torch.nn.ModuleList)]
    towers = [each for each in stacks if each not in decoder]
    return [*backbone.decoder.layers, *(max(towers, key=len) if towers else ())]


def _subjects(bench: Bench, manifest: Manifest, configuration: Configuration) -> list[Subject]:
    """Bind the methods; one that cannot run on this backbone is named and left out."""
    found, refused = [], None
    for cell in once_each(manifest):
        try:
            method = _bound(cell, bench.backbone, graphed=configuration == "cuda-graph")
            for asked in _asked(bench.backbone.name, bench.settings):
                first = FirstToken(bench.backbone, method, cell, asked, graphed=configuration == "cuda-graph")
                first.once()
                found.append(Subject(cell, asked, first))
        except DpbenchError as error:
            refused = error
            bench.console.print(f"left out: {cell.method} @ {cell.budget.label}: {error}")
    if not found and refused is not None:
        raise refused
    return found


def _bound(cell: Cell, backbone: Backbone, *, graphed: bool) -> Method:
    method = registry.load(cell.method, cell.params)
    method = method.untrained() if cell.entry.weights == backbones.RANDOM else method
    return (method.graphed() if graphed else method).bind(backbone)


def _asked(name: str, settings: Settings) -> Iterator[Inputs]:
    base = Inputs(image_hw=settings.image_hw or usual_size(name), text_tokens=settings.text_tokens)
    for size in settings.batch_sizes:
        if settings.sweep is None:
            yield replace(base, batch_size=size)
        else:
            for count, grid in steps(name):
                hw = base.image_hw if grid is None else _pixels(name, grid)
                text = base.text_tokens + count - 1  # every image brings a line break
                yield replace(base, batch_size=size, num_images=count, grid=grid, image_hw=hw, text_tokens=text)


def _pixels(name: str, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image of which a tower of one size makes a smaller grid."""
    patch = usual_size(name)[0] // math.isqrt(backbones.find(name).num_visual or 1)
    return grid[0] * patch, grid[1] * patch


def _timed(bench: Bench, subjects: Sequence[Subject]) -> list[Series]:
    runs = [_run(subject, bench) for subject in subjects]
    settings = bench.settings
    bench.readings = []
    with _progress(bench.console) as bar:
        job = bar.add_task(f"timing {len(runs)} in turn", total=1.0)

        def after_round(share: float) -> None:
            bar.update(job, completed=share)
            _look(bench)

        _look(bench)
        series = interleave(
            runs,
            repetitions=settings.repetitions,
            seconds=settings.seconds,
            warmups=settings.warmups,
            after_round=after_round,
        )
        _look(bench)
    return series


def _look(bench: Bench) -> None:
    if bench.handle is not None:
        bench.readings.append(nvml.read(bench.handle))


def _run(subject: Subject, bench: Bench) -> Run:
    def run(turn: int) -> dict[str, float]:
        recorder = Recorder(clock_of(bench.backbone.device))
        subject.first.run(turn, recorder)
        return net(recorder.ms())

    return run


def _progress(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %, left:"),
        TimeRemainingColumn(),
        TextColumn("so far:"),
        TimeElapsedColumn(),
        console=console,
    )
