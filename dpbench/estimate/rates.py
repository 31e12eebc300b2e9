"""How fast a device answers: rates of committed profiles, scaled by FLOPs to other backbones and GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from statistics import mean
from typing import Any

import yaml

from dpbench import backbones
from dpbench.estimate.cost import CellCost, image_flops, try_cell_cost
from dpbench.estimate.shapes import Shapes, count_parameters
from dpbench.estimate.workload import TaskLoad
from dpbench.manifest.cell import Cell
from dpbench.manifest.schema import BackboneEntry
from dpbench.report.tables import published

EFFICIENCY_TABLE = 4
"""The paper's table of milliseconds on another GPU, of the same model and prompt as the profile of llava-1.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Speeds of one backbone on one device.

    Attributes:
        device: what ran.
        source: where the numbers come from, in words.
        image_flops_per_s: of tower and projector.
        prefill_flops_per_s: of the decoder.
        splice_ms: of a prompt, the pruned rows put into it.
        decode_ms: of one step, for all prompts of a batch.
        reduce_ms: of a method's decision about one image, by method.
        answer_ms: of a whole answer, by method; where it is known, only images are added.
        is_gpu_profile: the rate is a committed profile's, so it can be scaled to another GPU.
    """

    device: str
    source: str
    image_flops_per_s: float
    prefill_flops_per_s: float = float("inf")
    splice_ms: float = 0.0
    decode_ms: float = 0.0
    reduce_ms: Mapping[str, float] = field(default_factory=dict)
    answer_ms: Mapping[str, float] = field(default_factory=dict)
    is_gpu_profile: bool = False


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long a run takes, from answers of one token to answers of their tasks' limits."""

    least: float
    most: float

    def __add__(self, other: Seconds) -> Seconds:
        """Return the time of one after the other."""
        return Seconds(self.least + other.least, self.most + other.most)


@cache
def _committed() -> Mapping[str, Any]:
    listed: Mapping[str, Any] = yaml.safe_load((files("dpbench.estimate") / "rates.yaml").read_text(encoding="utf-8"))
    return listed


def committed_rate(entry: BackboneEntry) -> Rate:
    """Return a backbone's rate from the committed profile of its own, or of the nearest of its family."""
    for run in _committed()["runs"]:
        if run["backbone"] == entry.name:
            speed = 1000 * run["image_flops"] / run["image_ms"]
            source = f"{run['source']}, answers of a whole run"
            return Rate(device=run["device"], source=source, image_flops_per_s=speed, answer_ms=run["answer_ms"])
    module = backbones.find(entry.name).module
    relatives = [one for one in _committed()["profiles"] if backbones.find(one["backbone"]).module == module]
    profile = next((one for one in relatives if one["backbone"] == entry.name), relatives[0])
    return _profile_rate(profile, entry)


def _profile_rate(profile: Mapping[str, Any], entry: BackboneEntry) -> Rate:
    name, own = profile["backbone"], count_parameters(BackboneEntry(name=profile["backbone"]))
    everywhere = {method: ms for one in reversed(_committed()["profiles"]) for method, ms in one["reduce_ms"].items()}
    source = f"scaled by FLOPs from {profile['source']} ({name}, {profile['dtype']}, one prompt at a time)"
    return Rate(
        device=profile["device"],
        source=source,
        image_flops_per_s=1000 * profile["image_flops"] / profile["image_ms"],
        prefill_flops_per_s=1000 * profile["prefill_flops"] / profile["prefill_ms"],
        splice_ms=profile["splice_ms"],
        decode_ms=profile["decode_ms"] * count_parameters(entry) / own,  # a step reads every weight once
        reduce_ms={**everywhere, **profile["reduce_ms"]},
        is_gpu_profile=True,
    )


def on_papers_gpu(rate: Rate) -> Rate:
    """Return a committed profile's rate on the GPU of the paper's Table 4, which timed the same model and prompt.

    Tower and prefill are scaled by its milliseconds over the profile's. It does not say how long a step of decoding
    takes, and its selections take about as long as the profile's: these, which wait for launches, stay as they are.
    """
    table = published.load(EFFICIENCY_TABLE)
    theirs = next(row["values"] for row in table.rows if row["method"] == "none")
    ours = next(one for one in _committed()["profiles"] if one["backbone"] == table.backbone)
    encode, prefill = theirs["encode"] / ours["image_ms"], theirs["prefill"] / ours["prefill_ms"]
    return replace(
        rate,
        device=str(table.protocol["gpu"].value),
        source=f"the tower taking {encode:.1f} and prefill {prefill:.1f} times as long, as in the paper's Table 4",
        image_flops_per_s=rate.image_flops_per_s / encode,
        prefill_flops_per_s=rate.prefill_flops_per_s / prefill,
    )


def estimate_seconds(rate: Rate, shapes: Shapes, loads: Sequence[TaskLoad], batch_size: int) -> Seconds:
    """Return how long a backbone's tasks take; cells that their method refuses are left out."""
    total = Seconds(0.0, 0.0)
    for load in loads:
        tried = {cell.id: try_cell_cost(shapes, cell) for cell in load.cells}
        costs = {cell_id: cost for cell_id, cost in tried.items() if isinstance(cost, CellCost)}
        images = load.most_images * image_flops(shapes) + _resized_flops(load, costs)
        encode = images / rate.image_flops_per_s
        total += Seconds(encode, encode)
        for cell in load.cells:
            if cell.id in costs:
                total += _cell_seconds(rate, cell, costs[cell.id], load, batch_size)
    return total


def _resized_flops(load: TaskLoad, costs: Mapping[str, CellCost]) -> int:
    """Return the FLOPs of images that methods resize, each size once."""
    return load.most_images * sum({cost.resized_image for cost in costs.values() if cost.resized_image is not None})


def _cell_seconds(rate: Rate, cell: Cell, cost: CellCost, load: TaskLoad, batch_size: int) -> Seconds:
    questions = load.num_questions
    if rate.answer_ms:
        whole = questions * rate.answer_ms.get(cell.method, mean(rate.answer_ms.values())) / 1000
        return Seconds(whole, whole)
    # questions about one image share its part of the prompt, once in each batch that they are in
    shared = min(questions, load.most_images + questions // batch_size)
    prefill = (questions * cost.question + shared * cost.image) / rate.prefill_flops_per_s
    ready = prefill + questions * (rate.splice_ms + rate.reduce_ms.get(cell.method, 0.0)) / 1000
    step = -(-questions // batch_size) * rate.decode_ms / 1000
    return Seconds(ready + step, ready + load.answer_limit * step)
