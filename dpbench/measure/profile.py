"""Time to first token of every method of a manifest, stage by stage, on one image and one question, batch size 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from dpbench import backbones, pruning, record, reducing, registry
from dpbench.answering import rule_of
from dpbench.backbones.base import Backbone
from dpbench.manifest import Cell, Manifest, cells
from dpbench.measure.environment import environment, versions
from dpbench.measure.flops import count_flops
from dpbench.measure.timing import Stages, time_stages
from dpbench.method import Method
from dpbench.record import Profile

QUESTION = "Is there a red circle in the image?\nAnswer the question using a single word or phrase."
IMAGE_SIDE = 336


def profile_manifest(
    manifest: Manifest, out: Path, *, device: str = "auto", repeats: int = 30, warmups: int = 5
) -> list[Profile]:
    """Profile each (method, budget) of a manifest once and append to `out/<name>/profile.jsonl`.

    Args:
        manifest: its tasks and limits do not matter here.
        out: results folder.
        device: "auto", "cpu" or "cuda".
        repeats: repetitions kept.
        warmups: repetitions run before and not kept.
    """
    from dpbench.runner import load_backbone, pick_device

    device, console = pick_device(device), Console(stderr=True)
    backbone = load_backbone(manifest, device)
    found = {"versions": versions(), **environment(device)}
    profiles = []
    for cell in track(_once_each(manifest), "profiling", console=console):
        with _inference():
            profiles.append(_profile(backbone, cell, found, repeats=repeats, warmups=warmups))
        record.append(out / manifest.name / "profile.jsonl", profiles[-1])
    return profiles


def _once_each(manifest: Manifest) -> list[Cell]:
    """Return one cell per method and budget; tasks and seeds make no difference to time."""
    task, seed = manifest.tasks[0], manifest.protocol.seeds[0]
    return [cell for cell in cells(manifest) if cell.task == task and cell.seed == seed]


def _profile(backbone: Backbone, cell: Cell, found: dict[str, Any], *, repeats: int, warmups: int) -> Profile:
    method = registry.load(cell.method, cell.params)
    method = (method.untrained() if cell.weights == backbones.RANDOM else method).bind(backbone)
    first = OneQuestion(backbone, method, cell)
    flops = {name: count_flops(call) for name, call in first.stages().items()}
    times = time_stages(first.stages(), backbone.device, repeats=repeats, warmups=warmups)
    return Profile(
        backbone=cell.backbone,
        weights=cell.weights or backbones.find(cell.backbone).weights,
        method=cell.method,
        params=cell.params,
        budget=cell.budget_label,
        num_visual=round(mean(first.spliced.per_layer(backbone.num_layers))),
        num_prompt=len(first.spliced.embeds_LD),
        stages_ms=times,
        warmups=warmups,
        stages_flops={**flops, "total": sum(flops.values())},
        environment=found,
    )


class OneQuestion:
    """The stages of answering one question up to the first token, each leaving its result for the next."""

    def __init__(self, backbone: Backbone, method: Method, cell: Cell) -> None:
        self.backbone, self.method, self.cell = backbone, method, cell
        noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
        self.prompt = reducing.prompt_of(backbone, method, [Image.fromarray(noise)], QUESTION, rule_of(cell))
        self.needs = method.needs(backbone.provides)
        self.features: list[Any] = []
        self.spliced: pruning.Spliced

    def stages(self) -> Stages:
        """Return encode, reduce and prefill, in order."""
        return {"encode": self.encode, "reduce": self.reduce, "prefill": self.prefill}

    def encode(self) -> None:
        """Run tower and projector, with the signals the method reads."""
        self.features = self.backbone.encode(self.prompt.pixels, self.needs)

    def reduce(self) -> None:
        """Let the method decide and build the shortened prompt."""
        generators = [reducing.image_generator(0, "profile", n) for n in range(len(self.features))]
        self.spliced = pruning.splice(
            self.backbone, self.method, self.prompt, self.features, generators, rule_of(self.cell)
        )

    def prefill(self) -> None:
        """Run the decoder over the prompt and the LM head over its last position."""
        pruning.prefill(self.backbone, self.method, [self.spliced])


@contextmanager
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
