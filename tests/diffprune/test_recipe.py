"""A recipe's defaults follow its backbone."""

from typing import Any

import pytest
from accelerate import Accelerator
from rich.console import Console
from small_training import small_recipe

from dpbench.diffprune.recipe import make_recipe
from dpbench.diffprune.setup import build_setup
from dpbench.errors import ConfigError
from dpbench.registry import parse_params


@pytest.mark.parametrize(
    ("backbone", "given", "aspect"),
    [
        ("llava-1.5", {}, "pad"),
        ("llava-1.5-13b", {}, "pad"),
        ("llava-1.5", {"image_aspect": "crop"}, "crop"),
        ("llava-next", {}, None),
        ("qwen2.5-vl", {}, None),
    ],
)
def test_llava_15_is_trained_on_padded_images_as_it_is_evaluated(
    backbone: str, given: dict[str, Any], aspect: str | None
) -> None:
    assert make_recipe(backbone, {"data": "images", **given}).image_aspect == aspect


def test_a_tower_that_reads_any_shape_has_no_image_aspect() -> None:
    with pytest.raises(ConfigError, match="--image-aspect: llava-next reads images of any shape"):
        make_recipe("llava-next", {"data": "images", "image_aspect": "pad"})


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_the_frozen_backbone_reads_images_as_the_recipe_says(aspect: str) -> None:
    setup = build_setup(small_recipe(image_aspect=aspect), Accelerator(cpu=True), Console(quiet=True))
    assert setup.objective.backbone.pads is (aspect == "pad")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "keep"), [("16", "16"), ("016", "16"), ("0.25", "0.25"), ("16,32", "16,32")])
def test_a_budget_that_is_read_as_a_number_is_a_budget(text: str, keep: str) -> None:
    assert make_recipe("toy-llava", parse_params([f"keep={text}"])).keep == keep


def test_only_a_variant_that_drops_tokens_has_a_fill() -> None:
    assert make_recipe("toy-llava", {"variant": "identity-ste", "fill": "mean"}).fill == "mean"
    with pytest.raises(ConfigError, match="--param fill: scale-gate drops no token; remove it, or give --variant gumb"):
        make_recipe("toy-llava", {"variant": "scale-gate", "fill": "mean"})
