"""Measure a backbone's rates on this machine, with random weights of its full size: two minutes, nothing is fetched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from rich.console import Console

from dpbench import backbones, registry
from dpbench.backbones.base import Backbone
from dpbench.engine.answers import batch_size
from dpbench.errors import DpbenchError
from dpbench.estimate.cost import cell_cost, image_flops
from dpbench.estimate.rates import Rate, committed_rate
from dpbench.estimate.shapes import Shapes
from dpbench.estimate.steps import CHECKPOINT
from dpbench.machine.environment import environment
from dpbench.manifest.cell import Cell
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.schema import Manifest
from dpbench.measure.first_token import NUM_DECODED, FirstToken, charge_reduce
from dpbench.measure.settings import cells_to_measure
from dpbench.measure.synthetic_prompts import PromptShape
from dpbench.measure.timing import Recorder, clock_of

SECONDS = 100.0
"""Spent on methods, at most; loading comes on top. A method that is not reached keeps its committed rate."""
REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """One method on one batch.

    Attributes:
        method: its name.
        size: prompts in the batch.
        flops: of tower and projector over an image, and of the decoder over a prompt.
        ms: of each stage, and of one step of decoding.
    """

    method: str
    size: int
    flops: tuple[int, int]
    ms: dict[str, float]


def measure_rate(part: Manifest, shapes: Shapes, device: str) -> Rate:
    """Time every method of a manifest at its first budget, in the batches of a run.

    Args:
        part: a manifest with one backbone.
        shapes: of its prompts.
        device: "cpu" or "cuda".

    Raises:
        DpbenchError: no method of the manifest can run on the backbone.
    """
    size, console = batch_size(part.protocol.batch_size, torch.device(device).type), Console(stderr=True)
    timings: list[Timing] = []
    refusal: DpbenchError | None = None
    with torch.inference_mode(), console.status(f"measuring {part.backbone.name}, two minutes"):
        backbone = load_backbone(_without_files(part), device)
        deadline = time.monotonic() + SECONDS
        for cell in _first_budgets(part):
            if timings and time.monotonic() > deadline:
                break
            try:
                timings.append(_time_fitting(backbone, cell, shapes, timings[-1].size if timings else size))
            except DpbenchError as error:
                refusal = error
    if not timings and refusal is not None:
        raise refusal
    return _summarize(part, timings, str(environment(device).get("gpu", "this CPU")))


def _first_budgets(part: Manifest) -> list[Cell]:
    """Return one cell of each method, in order."""
    first: dict[str, Cell] = {}
    for cell in cells_to_measure(part):
        first.setdefault(cell.method, cell)
    return list(first.values())


def _without_files(part: Manifest) -> Manifest:
    """Return the manifest with random weights, unless its backbone is the one whose weights are in the package."""
    if backbones.find(part.backbone.name).weights.startswith("package:"):
        return part
    entry = part.backbone.model_copy(update={"weights": backbones.RANDOM, "revision": None, "quantize": None})
    return part.model_copy(update={"backbone": entry})


def _time_fitting(backbone: Backbone, cell: Cell, shapes: Shapes, size: int) -> Timing:
    """Time a cell in the largest batch that fits, halved from `size`."""
    while size > 1:
        try:
            return _time(backbone, cell, shapes, size)
        except torch.OutOfMemoryError:
            size //= 2
        torch.cuda.empty_cache()  # after the exception, whose frames hold the batch
    return _time(backbone, cell, shapes, size)


def _time(backbone: Backbone, cell: Cell, shapes: Shapes, size: int) -> Timing:
    params = {name: value for name, value in cell.params.items() if name != CHECKPOINT}
    method = registry.load(cell.method, params).untrained().bind(backbone)
    first_token = FirstToken(backbone, method, cell, PromptShape(batch_size=size, text_tokens=shapes.text_tokens))
    first_token.run_untimed()
    passes = []
    for turn in range(REPETITIONS):
        recorder = Recorder(clock_of(backbone.device))
        first_token.run(turn, recorder)
        passes.append(charge_reduce(recorder.ms()))
    ms = {name: median(one[name] for one in passes) for name in ("encode", "reduce", "splice", "prefill")}
    recorder = Recorder(clock_of(backbone.device))
    first_token.answer(REPETITIONS, recorder)
    cost = cell_cost(shapes, cell)
    flops = image_flops(shapes) if cost.resized_image is None else cost.resized_image, cost.image + cost.question
    return Timing(cell.method, size, flops, {**ms, "decode": recorder.ms()["decode"] / NUM_DECODED})


def _summarize(part: Manifest, timings: Sequence[Timing], device: str) -> Rate:
    sizes = sorted({timing.size for timing in timings})
    names = {timing.method for timing in timings}
    left_out = [entry.name for entry in part.methods if entry.name not in names]
    own = backbones.find(part.backbone.name).weights.startswith("package:")
    source = f"measured in batches of {' and '.join(map(str, sizes))}, {'its own' if own else 'random'} weights"
    committed = committed_rate(part.backbone)
    return Rate(
        device=device,
        source=source + (f"; not measured: {', '.join(dict.fromkeys(left_out))}" if left_out else ""),
        image_flops_per_s=1000 * _flops(timings, 0) / sum(timing.ms["encode"] for timing in timings),
        prefill_flops_per_s=1000 * _flops(timings, 1) / sum(timing.ms["prefill"] for timing in timings),
        splice_ms=mean(timing.ms["splice"] / timing.size for timing in timings),
        decode_ms=mean(timing.ms["decode"] for timing in timings),
        reduce_ms={**committed.reduce_ms, **{timing.method: timing.ms["reduce"] / timing.size for timing in timings}},
    )


def _flops(timings: Sequence[Timing], of: int) -> int:
    return sum(timing.size * timing.flops[of] for timing in timings)
