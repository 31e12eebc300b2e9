"""One row of a profile: what was timed of a subject, and what is measured of it besides, as a record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from dpbench import backbones
from dpbench.backbones.base import Backbone
from dpbench.machine import profiler_ranges
from dpbench.machine.nvml import Reading
from dpbench.manifest.cell import Cell
from dpbench.measure import energy, memory, roofline, stability
from dpbench.measure.first_token import DECODED, FirstToken, net
from dpbench.measure.flops import counting
from dpbench.measure.interleave import Series
from dpbench.measure.settings import Configuration, Settings
from dpbench.measure.synthetic_prompts import Inputs, usual_size
from dpbench.measure.timing import Recorder, clock_of
from dpbench.storage.record import Profile


@dataclass(slots=True)
class Bench:
    """What all subjects of a profile share.

    Attributes:
        backbone: loaded once.
        settings: how to run.
        console: where progress goes.
        handle: NVML's for the GPU, or None.
        found: versions and environment.
        started: when, in UTC.
        rates: of the device.
        idle_w: drawn at rest, or None where it is not counted.
        readings: the GPU before, during and after.
    """

    backbone: Backbone
    settings: Settings
    console: Console
    handle: Any
    found: dict[str, Any]
    started: str
    rates: dict[str, float]
    idle_w: float | None = None
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Subject:
    """A cell with what it is asked, ready to run."""

    cell: Cell
    asked: Inputs
    first: FirstToken


def row(bench: Bench, subject: Subject, series: Series, configuration: Configuration) -> Profile:
    """Return the record of a subject: its times, and its answers, FLOPs, bytes and joules measured now."""
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
        weights=cell.entry.weights or backbones.find(cell.backbone).weights,
        method=cell.method,
        params=cell.params,
        budget=cell.budget.label,
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
        started=bench.started,
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
        with profiler_ranges.listening(counted), counted.range("ttft"):
            for name, call in first.stages(0).items():
                with counted.range(name):
                    call()
    return {name: int(value) for name, value in net({k: float(v) for k, v in counted.found.items()}).items()}
