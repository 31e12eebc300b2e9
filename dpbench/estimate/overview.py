"""Put an estimate together: one part for each backbone, what is there, and what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpbench.engine.answers import batch_size
from dpbench.errors import DpbenchError, MissingError
from dpbench.estimate import measuring
from dpbench.estimate.cost import BYTES, PACKED_BYTES, Memory, image_bytes, prompt_bytes, try_cell_cost
from dpbench.estimate.rates import Rate, Seconds, committed_rate, estimate_seconds
from dpbench.estimate.shapes import Shapes, count_parameters, load_shapes
from dpbench.estimate.steps import Item, list_items
from dpbench.estimate.workload import TaskLoad, load_tasks
from dpbench.evaluation.plan import Plan, plan
from dpbench.evaluation.runner import FEATURE_CACHE
from dpbench.machine.device import pick_device
from dpbench.manifest.schema import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one backbone's cells would take.

    Attributes:
        manifest: with this backbone alone.
        shapes: of a usual prompt.
        loads: its tasks.
        refused: why cells cannot run, by method and budget.
        memory: on a GPU.
        rate: that the time is from.
        seconds: of all answers.
    """

    manifest: Manifest
    shapes: Shapes
    loads: Sequence[TaskLoad]
    refused: dict[str, str]
    memory: Memory
    rate: Rate
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a manifest would take.

    Attributes:
        manifest: the whole.
        parts: by backbone, in order.
        items: what it reads, in the order to get it.
        plan: which cells are done; None if that cannot be known without weights or data.
        out: results go to `out/<manifest name>`.
    """

    manifest: Manifest
    parts: Sequence[Part]
    items: Sequence[Item]
    plan: Plan | None
    out: Path


def build_overview(manifest: Manifest, out: Path, data_root: Path | None, *, measure: str | None = None) -> Overview:
    """Estimate a manifest; neither weights nor data nor a GPU are needed.

    Args:
        manifest: what to estimate.
        out: results go to `out/<manifest name>`.
        data_root: folder with the benchmarks' data, or None for the hub's cache.
        measure: device to measure rates on, with random weights; None for the committed profiles.

    Raises:
        ConfigError: the device does not exist, or a method's parameters are wrong.
    """
    device = pick_device(measure) if measure else None
    parts = [_build_part(part, data_root, device) for part in manifest.parts()]
    try:
        known = plan(manifest, out, data_root)
    except MissingError:
        known = None
    return Overview(manifest=manifest, parts=parts, items=list_items(manifest, data_root), plan=known, out=out)


def _build_part(part: Manifest, data_root: Path | None, device: str | None) -> Part:
    shapes, loads = load_shapes(part), load_tasks(part, data_root)
    tried = {f"{cell.method} @ {cell.budget.label}": try_cell_cost(shapes, cell) for cell in loads[0].cells}
    rate = measuring.measure_rate(part, shapes, device) if device else committed_rate(part.backbone)
    size = batch_size(part.protocol.batch_size, device or "cuda")
    return Part(
        manifest=part,
        shapes=shapes,
        loads=loads,
        refused={label: str(cost) for label, cost in tried.items() if isinstance(cost, DpbenchError)},
        memory=_memory(part, shapes, loads, size),
        rate=rate,
        seconds=estimate_seconds(rate, shapes, loads, size),
    )


def _memory(part: Manifest, shapes: Shapes, loads: Sequence[TaskLoad], size: int) -> Memory:
    dtype, packed = part.resolved_protocol().dtype or "float32", part.backbone.quantize
    each = PACKED_BYTES[packed] if packed else BYTES[dtype]
    longest = max(load.answer_limit for load in loads)
    return Memory(
        weights=round(count_parameters(part.backbone) * each),
        prompt=prompt_bytes(shapes, dtype, longest),
        batch_size=size,
        cache=min(FEATURE_CACHE, sum(load.most_images for load in loads) * image_bytes(shapes, dtype)),
    )
