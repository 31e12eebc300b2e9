"""Noise features have the same fields, shapes, types and layout as the model's own."""

from dataclasses import fields
from functools import cache

import pytest
import torch
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.measure import random_features
from dpbench.measure.flops import count_flops
from dpbench.method import Cut

LAYOUT = {"view_N", "row_N", "col_N", "read_N", "slot_N"}


@cache
def backbone(family: str) -> Backbone:
    return miniatures.backbone(family)


@pytest.mark.parametrize("size", [(56, 56), (130, 70)])
@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_features_look_like_the_towers(family: str, size: tuple[int, int]) -> None:
    ours = backbone(family)
    pixels = ours.prompt([Image.new("RGB", size)], "What is it?").pixels[0]
    (real,) = ours.encode([pixels], ours.provides)
    noise = random_features.features(ours, pixels, ours.provides)
    for name in (field.name for field in fields(real)):
        one, other = getattr(real, name), getattr(noise, name)
        if isinstance(one, dict):
            assert {layer: (x.shape, x.dtype) for layer, x in one.items()} == {
                layer: (x.shape, x.dtype) for layer, x in other.items()
            }
        elif one is None or isinstance(one, int):
            assert other == one, name
        elif name in LAYOUT:
            assert torch.equal(one, other), name
        else:
            assert (one.shape, one.dtype) == (other.shape, other.dtype), name


@pytest.mark.parametrize(("probe", "projected"), [(1, 0), (2, 2 * 32 * (15 * 16 + 32))])
def test_a_view_counts_the_projections_it_has_to_run(probe: int, projected: int) -> None:
    """Grouped keys of 16 at all 15 positions and one query of 32, unless the probe's layer ran already."""
    prompt = random_features.PromptLayout(before=3, num_visual=12, after=5)
    view = random_features.layer_view(backbone("qwen2_5_vl"), Cut(2, 4, probe), 1, prompt, 7)
    assert view.visual_index_N.tolist() == [*range(3, 10)]
    assert view.text_index.tolist() == [0, 1, 2, *range(10, 15)]
    assert (len(view.hidden_LD), len(view.prompt.embeds_LD)) == (15, 20)
    assert count_flops(view.attention) == projected + 2 * 32 * 15
    assert view.attention().sum(-1).allclose(torch.ones(4, 1))
