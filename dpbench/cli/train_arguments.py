"""From flags to the recipe of a training. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpbench import backbones, registry
from dpbench.cli.flags import Given
from dpbench.diffprune.recipe import Recipe, make_recipe


def build_recipe(backbone: str, given: Given, params: Sequence[str]) -> Recipe:
    """Return the training that flags describe; `--param` sets what has no flag of its own.

    Raises:
        ConfigError: an unknown setting, or a value it cannot take.
    """
    backbones.find(backbone)
    return make_recipe(backbone, {**given, **registry.parse_params(list(params))})


def scorer_folder(recipe: Recipe, out: Path | None) -> Path:
    """Return where a training writes: `out`, or a folder under scorers/ named after what is trained."""
    variant = "" if recipe.variant == "diffprune" else f"-{recipe.variant}"
    fill = "" if recipe.fill == "zero" else f"-{recipe.fill}"
    return out or Path("scorers") / f"{recipe.backbone}{variant}{fill}"
