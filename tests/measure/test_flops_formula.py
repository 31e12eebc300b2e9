"""The closed form equals both counters on every family: tower, projector, signals, decoder, LM head."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.backbones.architectures import ARCHITECTURES
from dpbench.backbones.base import Backbone, Prompt
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import Rule
from dpbench.errors import UnsupportedError
from dpbench.measure import flops_formula
from dpbench.measure.flops import count_flops, count_flops_by_fvcore
from dpbench.measure.random_features import layout
from dpbench.method import Budget, Cut, LayerView, Method, Reduction

COUNTERS = pytest.mark.parametrize("count", [count_flops, count_flops_by_fvcore])
FAMILIES = pytest.mark.parametrize("family", miniatures.FAMILIES)


@cache
def backbone(family: str) -> Backbone:
    return miniatures.backbone(family)


def prompt_of(family: str, size_hw: tuple[int, int], method: Method | None = None) -> Prompt:
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    rule = Rule(BudgetRequest(prune_rate=0.5))
    return decision.build_unpruned_prompt(
        backbone(family), method or Method(), [Image.fromarray(pixels)], "What is it?", rule
    )


@COUNTERS
@FAMILIES
@pytest.mark.parametrize("size_hw", [(56, 56), (140, 196), (200, 84)])
def test_tower_projector_and_signals(count: Callable[..., int], family: str, size_hw: tuple[int, int]) -> None:
    ours, prompt = backbone(family), prompt_of(family, size_hw)
    config, (num_views, grid) = ours.model.config, layout(ours, prompt.pixels[0])
    num = num_views * grid[0] * grid[1]
    bare = flops_formula.tower(config, grid, num_views) + flops_formula.projector(config, num)
    assert count(lambda: ours.encode(prompt.pixels)) == bare
    for needs in ({signal} for signal in ours.provides):
        added = flops_formula.signals(config, frozenset(needs), grid, num_views)
        assert count(lambda: ours.encode(prompt.pixels, frozenset(needs))) == bare + added  # noqa: B023


@FAMILIES
def test_a_grid_of_another_size_makes_another_tower(family: str) -> None:
    ours, prompt = backbone(family), prompt_of(family, (112, 112))
    smaller = ours.prompt([Image.new("RGB", (112, 112))], "What is it?", [(2, 3)])
    assert layout(ours, smaller.pixels[0]) == (1, (2, 3))
    config = ours.model.config
    expected = flops_formula.tower(config, (2, 3)) + flops_formula.projector(config, 6)
    assert count_flops(lambda: ours.encode(smaller.pixels)) == expected
    assert expected < count_flops(lambda: ours.encode(prompt.pixels))


class CutAndKeepFirst(Method):
    """Two cuts that compute nothing, so that only decoder and LM head have FLOPs."""

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return Cut(1, num_visual // 2, 1), Cut(3, 1, 3)

    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(view.cut.keep))


@COUNTERS
@FAMILIES
@pytest.mark.parametrize("method", [Method(), CutAndKeepFirst()])
def test_decoder_and_lm_head_follow_the_cuts(count: Callable[..., int], family: str, method: Method) -> None:
    ours, prompt = backbone(family), prompt_of(family, (112, 112))
    features, generators = ours.encode(prompt.pixels), [decision.image_generator(0, "test", 0)]
    spliced = pruned_prompt.splice(ours, method, prompt, features, generators, Rule(BudgetRequest(prune_rate=0.5)))
    num_text, config = len(spliced.visual_L) - spliced.num_visual, ours.model.config
    lengths = [num_text + num for num in spliced.allowed_per_layer(ours.num_layers)]
    assert (len(set(lengths)) == 3) == (method != Method())
    expected = flops_formula.decoder(config, lengths) + flops_formula.lm_head(config)
    assert count(lambda: forward.prefill(ours, method, [spliced])) == expected


@FAMILIES
def test_lm_head_at_all_positions(family: str) -> None:
    ours = backbone(family)
    states = torch.zeros(1, 7, 32, dtype=torch.float64)
    assert count_flops(lambda: ours.model.lm_head(states)) == flops_formula.lm_head(ours.model.config, positions=7)


def test_llava_15_by_hand() -> None:
    """Figures of the model card: 24 layers of 1,024, 576 patches and CLS; 32 layers of 4,096."""
    config = ARCHITECTURES["llava-1.5"].config()
    per_token = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    pairs = 24 * 2 * 577**2 * 1024
    assert flops_formula.tower(config, (24, 24)) == 2 * (576 * 588 * 1024 + 577 * per_token + pairs)
    assert flops_formula.projector(config, 576) == 2 * 576 * (1024 * 4096 + 4096 * 4096)
    per_token, pairs = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32 * 2 * 642**2 * 4096
    assert flops_formula.decoder(config, [642] * 32) == 2 * (642 * per_token + pairs)
    assert flops_formula.lm_head(config) == 2 * 4096 * 32064


def test_a_family_or_signal_without_a_closed_form_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no closed form for 'blip'; known: llava"):
        flops_formula.tower(SimpleNamespace(model_type="blip", vision_config=None), (2, 2))
    config = backbone("llava").model.config
    with pytest.raises(UnsupportedError, match="no closed form for 'hue' of llava"):
        flops_formula.signals(config, frozenset({"hue"}), (4, 4))
