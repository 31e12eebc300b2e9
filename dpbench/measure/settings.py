"""Settings of a profile, and which cells of a manifest it measures. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from dpbench import backbones, registry
from dpbench.errors import ConfigError
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.schema import Manifest

Configuration = Literal["eager", "compile", "cuda-graph"]
MAX_SWEEP_TOKENS = 11_520


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How cells are profiled.

    Attributes:
        repetitions: minimum number of repetitions kept of each cell.
        seconds: minimum time spent in each cell.
        warmups: minimum number of repetitions run before; warm-up goes on until the times are stable.
        answers: whole answers decoded, each 32 tokens after the first; few, as decoding is slow and scatters little.
        batch_sizes: prompts at once.
        image_hw: height and width of the images in pixels; None for the size that fills the backbone.
        text_tokens: positions of a prompt outside its images.
        configurations: how the model is run; each gets its own table.
        sweep: the quantity that is varied, or None.
    """

    repetitions: int = 50
    seconds: float = 10.0
    warmups: int = 5
    answers: int = 3
    batch_sizes: tuple[int, ...] = (1,)
    image_hw: tuple[int, int] | None = None
    text_tokens: int = 66
    configurations: tuple[Configuration, ...] = ("eager",)
    sweep: Literal["visual-tokens"] | None = None


def cells_to_measure(manifest: Manifest) -> list[Cell]:
    """Return one cell per method and budget; time and FLOPs do not depend on tasks and seeds."""
    first: dict[object, Cell] = {}
    for cell in cells(manifest):
        if cell.task == manifest.tasks[0]:
            key = cell.entry, cell.method, json.dumps(cell.params, sort_keys=True), cell.budget
            first.setdefault(key, cell)
    return list(first.values())


def ordered_methods() -> list[str]:
    """Return the names of all methods, the unpruned model first."""
    return sorted(registry.methods(), key=lambda name: (name != "none", name))


def sweep_steps(backbone: str, max_tokens: int = MAX_SWEEP_TOKENS) -> list[tuple[int, tuple[int, int] | None]]:
    """Return the steps of a sweep over visual tokens: the number of images, and the grid if it is a smaller one.

    The steps are 144 tokens (a grid of 12 x 12), if the tower has more, then the tokens of one image times 1, 2, 4, ...
    up to `max_tokens`.

    Raises:
        ConfigError: the number of visual tokens depends on the image's size.
    """
    per_image = backbones.find(backbone).num_visual
    if per_image is None:
        raise ConfigError(
            f"--sweep visual-tokens: {backbone} has no fixed number of visual tokens; vary --image-size instead"
        )
    max_images = max_tokens // per_image
    powers = [2**exponent for exponent in range(max_images.bit_length())]
    steps: list[tuple[int, tuple[int, int] | None]] = [(1, (12, 12))] if per_image > 144 else []
    steps += [(count, None) for count in powers if count < max_images]
    return [*steps, (max_images, None)]
