"""One row of a profile: the times of a method, and its answers, FLOPs, bytes and joules, as a record."""

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
from dpbench.measure.first_token import NUM_DECODED, FirstToken, charge_reduce
from dpbench.measure.flops import counting_flops
from dpbench.measure.interleave import Series
from dpbench.measure.settings import Configuration, Settings
from dpbench.measure.synthetic_prompts import PromptShape, usual_size
from dpbench.measure.timing import Recorder, clock_of
from dpbench.storage.record import Profile


@dataclass(slots=True)
class ProfileSession:
    """What all methods of a profile share.

    Attributes:
        backbone: loaded once.
        settings: how to run.
        console: where progress is printed.
        handle: NVML's for the GPU, or None.
        environment: versions and machine.
        started: time of the start, in UTC.
        rates: of the device, see `roofline.measure_rates`.
        idle_w: power at rest, or None if the driver does not count energy.
        readings: of the GPU before, during and after the timing.
    """

    backbone: Backbone
    settings: Settings
    console: Console
    handle: Any
    environment: dict[str, Any]
    started: str
    rates: dict[str, float]
    idle_w: float | None = None
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ProfiledMethod:
    """A cell and prompts of one shape, ready to run."""

    cell: Cell
    shape: PromptShape
    first_token: FirstToken


def build_row(session: ProfileSession, method: ProfiledMethod, series: Series, configuration: Configuration) -> Profile:
    """Return a method's record from its times; its answers, FLOPs, bytes and joules are measured now."""
    backbone, first_token, cell, shape = session.backbone, method.first_token, method.cell, method.shape
    eager = configuration == "eager"
    times = series.stages() | (_time_answers(session, first_token) if eager and session.settings.answers else {})
    flops = count_stage_flops(first_token) if eager else {}
    prompt = first_token.pruned_prompts[0]
    weights = memory.weights_bytes(backbone.model)
    prefilled = first_token.prefilled()
    kv = memory.kv_bytes(prefilled.cache)
    moved = roofline.stage_bytes(backbone, _visual_bytes(first_token), _prompt_bytes(first_token), sum(kv))
    layers = prompt.read_per_layer(backbone.num_layers, prefilled.survivors[0])
    return Profile(
        backbone=cell.backbone,
        weights=cell.entry.weights or backbones.find(cell.backbone).weights,
        method=cell.method,
        params=cell.params,
        budget=cell.budget.label,
        configuration=configuration,
        batch_size=shape.batch_size,
        num_images=shape.num_images,
        image_hw=shape.image_hw or usual_size(cell.backbone),
        num_visual=mean(layers),
        visual_tokens_per_layer=layers,
        num_text=len(prompt.embeds_LD) - prompt.num_visual,
        stages_ms=times,
        warmups=series.warmups,
        stages_flops=flops,
        peak_bytes=memory.peak_bytes(first_token.stages(0), backbone.device, weights) if eager else {},
        weights_bytes=weights,
        kv_bytes_per_layer=kv,
        joules=_measure_joules(session, first_token),
        bound_ms=roofline.bounds_ms(flops, moved, session.rates) if eager else {},
        rates=session.rates,
        flags=tuple(stability.find_flags(times["ttft"], session.readings)),
        monitor=stability.summarize_readings(session.readings),
        environment=session.environment | {"dtype": str(backbone.dtype).removeprefix("torch.")},
        started=session.started,
    )


def _time_answers(session: ProfileSession, first_token: FirstToken) -> dict[str, tuple[float, ...]]:
    """Time preprocessing, decoding per token and whole answers; the first of them only warms up."""
    passes = []
    for turn in range(session.settings.answers + 1):
        recorder = Recorder(clock_of(session.backbone.device))
        first_token.answer(turn, recorder)
        passes.append(recorder.ms())
    passes = passes[1:]
    return {
        "preprocess": tuple(times["preprocess"] for times in passes),
        "decode": tuple(times["decode"] / NUM_DECODED for times in passes),
        "end_to_end": tuple(times["end_to_end"] for times in passes),
    }


def _measure_joules(session: ProfileSession, first_token: FirstToken) -> dict[str, float]:
    if session.handle is None or session.idle_w is None:
        return {}

    def call(turn: int) -> None:
        for stage in first_token.stages(turn).values():
            stage()

    joules = energy.joules_per_call(session.handle, call, session.idle_w)
    return {**joules, "idle_watts": session.idle_w} if joules else {}


def _prompt_bytes(first_token: FirstToken) -> int:
    """Return the bytes of all embeddings that the decoder reads."""
    embeds = [prompt.embeds_LD for prompt in first_token.pruned_prompts]
    return sum(embeds_LD.numel() * embeds_LD.element_size() for embeds_LD in embeds)


def _visual_bytes(first_token: FirstToken) -> int:
    """Return the bytes of the visual tokens that the method keeps."""
    return sum(
        prompt.embeds_LD.shape[1] * prompt.embeds_LD.element_size() * prompt.num_visual
        for prompt in first_token.pruned_prompts
    )


class _FlopRanges:
    """Counts the FLOPs inside each range."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.flops: dict[str, int] = {}

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        before = self.counter.get_total_flops()
        yield
        self.flops[name] = self.flops.get(name, 0) + int(self.counter.get_total_flops() - before)


def count_stage_flops(first_token: FirstToken) -> dict[str, int]:
    """Return the FLOPs of each stage, 2 per multiply-add; what the method adds counts in reduce, the sum is `ttft`."""
    with counting_flops() as counter:
        ranges = _FlopRanges(counter)
        with profiler_ranges.listening(ranges), ranges.range("ttft"):
            for name, call in first_token.stages(0).items():
                with ranges.range(name):
                    call()
    net = charge_reduce({name: float(value) for name, value in ranges.flops.items()})
    return {name: int(value) for name, value in net.items()}
