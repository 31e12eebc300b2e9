"""Where the milliseconds, FLOPs, bytes and joules of every method go, up to the first token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.flop_counter import FlopCounterMode

from dpbench import backbones, ranges, record, registry
from dpbench.backbones.base import Backbone
from dpbench.errors import DpbenchError
from dpbench.manifest import Cell, Manifest, cells
from dpbench.measure import energy, memory, nvml, roofline, stability
from dpbench.measure.environment import environment, versions
from dpbench.measure.first_token import DECODED, FirstToken, net
from dpbench.measure.flops import counting
from dpbench.measure.inputs import Inputs, usual_size
from dpbench.measure.interleave import Run, Series, interleave
from dpbench.measure.nvml import Reading
from dpbench.measure.settings import Configuration, Settings, steps
from dpbench.measure.timing import Recorder, clock_of
from dpbench.method import Method
from dpbench.record import Profile

VERSIONS = 4
"""Of a compiled layer: lengths of the prompt, a cache that is empty or not."""


@dataclass(slots=True)
class Bench:
    """What all subjects of a profile share.

    Attributes:
        backbone: loaded once.
        settings: how to run.
        console: where progress goes.
        handle: NVML's for the GPU, or None.
        found: versions and environment.
        rates: of the device.
        idle_w: drawn at rest, or None where it is not counted.
        readings: the GPU before, during and after.
    """

    backbone: Backbone
    settings: Settings
    console: Console
    handle: Any
    found: dict[str, Any]
    rates: dict[str, float]
    idle_w: float | None = None
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Subject:
    """A cell with what it is asked, ready to run."""

    cell: Cell
    asked: Inputs
    first: FirstToken


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
    from dpbench.runner import load_backbone, pick_device

    device, console = pick_device(device), Console(stderr=True)
    with console.status(f"loading {manifest.backbone.name}"):
        backbone = load_backbone(manifest, device)
    found = {"versions": versions(), **environment(device)}
    path = out / manifest.name / "profile.jsonl"
    profiles = []
    with torch.inference_mode(), nvml.opened() if device.startswith("cuda") else nullcontext() as handle:
        rates = roofline.rates(backbone.device, backbone.dtype)
        bench = Bench(backbone, settings, console, handle, found, rates)
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
                yield _row(bench, subject, each, configuration)


@contextmanager
def _configured(backbone: Backbone, configuration: Configuration) -> Iterator[None]:
    """Compile the layers of tower and decoder for as long as it is asked for.

    A layer of the decoder is compiled anew for the place it has in the cache: there are as many versions as layers.
    """
    compiled = _layers(backbone) if configuration == "compile" else []
    for layer in compiled:
        layer.compile()
    try:
        with torch._dynamo.config.patch(recompile_limit=VERSIONS * max(1, len(compiled))):
            yield
    finally:
        for layer in compiled:
            layer._compiled_call_impl = None


def _layers(backbone: Backbone) -> list[Any]:
    decoder = set(backbone.decoder.modules())
    stacks = [each for each in backbone.core.modules() if isinstance(each, torch.nn.ModuleList)]
    towers = [each for each in stacks if each not in decoder]
    return [*backbone.decoder.layers, *(max(towers, key=len) if towers else ())]


def _subjects(bench: Bench, manifest: Manifest, configuration: Configuration) -> list[Subject]:
    """Bind the methods; one that cannot run on this backbone is named and left out."""
    found, refused = [], None
    for cell in _once_each(manifest):
        try:
            method = _bound(cell, bench.backbone, graphed=configuration == "cuda-graph")
            for asked in _asked(bench.backbone.name, bench.settings):
                first = FirstToken(bench.backbone, method, cell, asked, graphed=configuration == "cuda-graph")
                first.once()
                found.append(Subject(cell, asked, first))
        except DpbenchError as error:
            refused = error
            bench.console.print(f"left out: {cell.method} @ {cell.budget_label}: {error}")
    if not found and refused is not None:
        raise refused
    return found


def _once_each(manifest: Manifest) -> list[Cell]:
    """Return one cell per method and budget; tasks and seeds make no difference to time."""
    task, seed = manifest.tasks[0], manifest.protocol.seeds[0]
    return [cell for cell in cells(manifest) if cell.task == task and cell.seed == seed]


def _bound(cell: Cell, backbone: Backbone, *, graphed: bool) -> Method:
    method = registry.load(cell.method, cell.params)
    method = method.untrained() if cell.weights == backbones.RANDOM else method
    return (method.graphed() if graphed else method).bind(backbone)


def _asked(name: str, settings: Settings) -> Iterator[Inputs]:
    base = Inputs(image_hw=settings.image_hw or usual_size(name), text_tokens=settings.text_tokens)
    for size in settings.batch_sizes:
        if settings.sweep is None:
            yield replace(base, batch_size=size)
        else:
            for count, grid in steps(name):
                hw = base.image_hw if grid is None else _pixels(name, grid)
                yield replace(base, batch_size=size, num_images=count, grid=grid, image_hw=hw)


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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %, left:"),
        TimeRemainingColumn(),
        TextColumn("so far:"),
        TimeElapsedColumn(),
        console=console,
    )


def _row(bench: Bench, subject: Subject, series: Series, configuration: Configuration) -> Profile:
    backbone, first, cell, asked = bench.backbone, subject.first, subject.cell, subject.asked
    eager = configuration == "eager"
    times = series.stages() | (_answers(first, bench) if eager and bench.settings.answers else {})
    flops = stage_flops(first) if eager else {}
    spliced = first.spliced[0]
    weights = memory.weights_bytes(backbone.model)
    kv = memory.kv_bytes(first.cache())
    moved = roofline.stage_bytes(backbone, _kept_bytes(first), _bytes(first), sum(kv))
    layers = spliced.per_layer(backbone.num_layers)
    return Profile(
        backbone=cell.backbone,
        weights=cell.weights or backbones.find(cell.backbone).weights,
        method=cell.method,
        params=cell.params,
        budget=cell.budget_label,
        configuration=configuration,
        batch_size=asked.batch_size,
        num_images=asked.num_images,
        image_hw=asked.image_hw or usual_size(cell.backbone),
        num_visual=mean(layers),
        visual_tokens_per_layer=layers,
        num_text=len(spliced.embeds_LD) - spliced.num_visual,
        stages_ms=times,
        warmups=series.warmups,
        stages_flops=flops,
        peak_bytes=memory.peaks(first.stages(0), backbone.device, weights) if eager else {},
        weights_bytes=weights,
        kv_bytes_per_layer=kv,
        joules=_joules(bench, first),
        bound_ms=roofline.bounds_ms(flops, moved, bench.rates) if eager else {},
        rates=bench.rates,
        flags=tuple(stability.flags(times["ttft"], bench.readings)),
        monitor=stability.monitor(bench.readings),
        environment=bench.found | {"dtype": str(backbone.dtype).removeprefix("torch.")},
    )


def _answers(first: FirstToken, bench: Bench) -> dict[str, tuple[float, ...]]:
    """Time preprocessing, decoding per token and whole answers, apart from the time to the first token."""
    seen = []
    for turn in range(bench.settings.answers + 1):
        recorder = Recorder(clock_of(bench.backbone.device))
        first.answer(turn, recorder)
        seen.append(recorder.ms())
    kept = seen[1:]
    decode = tuple(each["decode"] / DECODED for each in kept)
    return {
        "preprocess": tuple(each["preprocess"] for each in kept),
        "decode": decode,
        "end_to_end": tuple(each["end_to_end"] for each in kept),
    }


def _joules(bench: Bench, first: FirstToken) -> dict[str, float]:
    if bench.handle is None or bench.idle_w is None:
        return {}

    def call(turn: int) -> None:
        for stage in first.stages(turn).values():
            stage()

    drawn = energy.per_call(bench.handle, call, bench.idle_w)
    return {**drawn, "idle_watts": bench.idle_w} if drawn else {}


def _bytes(first: FirstToken) -> int:
    return sum(each.embeds_LD.numel() * each.embeds_LD.element_size() for each in first.spliced)


def _kept_bytes(first: FirstToken) -> int:
    sizes = [each.embeds_LD.shape[1] * each.embeds_LD.element_size() * each.num_visual for each in first.spliced]
    return sum(sizes)


class _FlopRanges:
    """Counts the FLOPs inside each range."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.found: dict[str, int] = {}

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        before = self.counter.get_total_flops()
        yield
        self.found[name] = self.found.get(name, 0) + int(self.counter.get_total_flops() - before)


def stage_flops(first: FirstToken) -> dict[str, int]:
    """Return the FLOPs each stage runs, 2 per multiply-add, what the method adds apart, and their sum as `ttft`."""
    with counting() as counter:
        counted = _FlopRanges(counter)
        with ranges.listening(counted), counted.range("ttft"):
            for name, call in first.stages(0).items():
                with counted.range(name):
                    call()
    return {name: int(value) for name, value in net({k: float(v) for k, v in counted.found.items()}).items()}
