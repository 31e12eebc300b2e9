"""How cells are profiled, and which of a manifest's cells make a difference to a profile. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpbench import backbones, registry
from dpbench.errors import ConfigError
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.schema import Manifest

Configuration = Literal["eager", "compile", "cuda-graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How cells are profiled.

    Attributes:
        repetitions: kept of each, at least.
        seconds: spent in each, at least.
        warmups: run before, at least, and until the times are stable.
        answers: whole answers decoded, each 32 tokens behind the first; decoding takes long and scatters little.
        batch_sizes: prompts at once.
        image_hw: pixels of the images, height and width, or None for what fills the backbone.
        text_tokens: positions of a prompt outside its images.
        configurations: how the model is run; each is a table of its own.
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


def once_each(manifest: Manifest) -> list[Cell]:
    """Return one cell per method and budget; tasks and seeds make no difference to time and FLOPs."""
    task, seed = manifest.tasks[0], manifest.protocol.seeds[0]
    return [cell for cell in cells(manifest) if cell.task == task and cell.seed == seed]


def ordered_methods() -> list[str]:
    """Return all methods, the unpruned model first."""
    return sorted(registry.methods(), key=lambda each: (each != "none", each))


def steps(backbone: str, upto: int = 11_520) -> list[tuple[int, tuple[int, int] | None]]:
    """Return a sweep over visual tokens as numbers of images, and a smaller grid for the first step where there is one.

    144 (twelve by twelve, where towers have more), then one image's own number times 1, 2, 4, ... up to 11,520.
    """
    per_image = backbones.find(backbone).num_visual
    if per_image is None:
        raise ConfigError(f"--sweep visual-tokens: {backbone} has no fixed number of them; vary --image-size instead")
    most = upto // per_image
    counts = [2**step for step in range(most.bit_length())]
    whole: list[tuple[int, tuple[int, int] | None]] = [(count, None) for count in counts if count < most]
    return ([(1, (12, 12))] if per_image > 144 else []) + [*whole, (most, None)]
