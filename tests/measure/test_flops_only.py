"""Counts without weights equal what the engine runs, for every method on every family; and the paper's Table 4."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from dpbench import backbones, registry
from dpbench.backbones import miniatures, weights
from dpbench.backbones.base import Backbone
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import Rule
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.measure import flops_only
from dpbench.measure.flops import count_flops, count_flops_by_fvcore
from dpbench.measure.flops_only import FlopsRow
from dpbench.measure.synthetic_prompts import QUESTION
from dpbench.method import Budget, Cut, LayerView, Method, Reduction

RULE = Rule(BudgetRequest(prune_rate=0.5))
SIZES_HW = {"llava": (56, 56), "llava_next": (112, 112), "qwen2_5_vl": (140, 196)}
"""Tiles without padding, so that every selected token is read; windows cut off at two edges."""
FOLLOWS_CONTENT = {"sparsevlm"}
"""The work of these methods depends on what they see, which is noise in one count and an image in the other."""


@cache
def backbone(family: str) -> Backbone:
    return miniatures.backbone(family)


def manifest(name: str, methods: list[Any], **settings: Any) -> Manifest:
    return make_manifest({"name": "test", "backbone": name, "methods": methods, **settings}, source="test")


def bind_or_skip(name: str, family: str) -> Method:
    method = registry.load(name).untrained()
    try:
        method.needs(backbone(family).provides)
    except UnsupportedError as error:
        pytest.skip(str(error))
    return method.bind(backbone(family))


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("name", registry.methods())
def test_every_stage_equals_both_counters(name: str, family: str) -> None:
    ours, method = backbone(family), bind_or_skip(name, family)
    height, width = SIZES_HW[family]
    image = Image.new("RGB", (width, height))
    prompt = decision.build_unpruned_prompt(ours, method, [image], QUESTION, RULE)
    num_text = len(prompt.ids_L) - (prompt.spans[0][1] - prompt.spans[0][0])
    counted = flops_only.count_method(ours, method, RULE, (height, width), num_text)
    needs, stages = method.needs(ours.provides), counted.stages_flops
    features = ours.encode(prompt.pixels, needs)

    def splice() -> pruned_prompt.PrunedPrompt:
        generators = [decision.image_generator(0, "flops", 0)]
        return pruned_prompt.splice(ours, method, prompt, features, generators, RULE)

    spliced = splice()
    assert counted.visual_tokens_per_layer == spliced.allowed_per_layer(ours.num_layers)
    assert counted.num_newlines == len(spliced.visual_L) - spliced.num_visual - num_text
    for count in (count_flops, count_flops_by_fvcore):
        encoded = count(lambda: ours.encode(prompt.pixels, needs))
        assert stages["tower"] + stages["projector"] + stages["signals"] == encoded
        splice_flops, decisions = count(splice), CountedDecisions(method, count)
        prefill = count(lambda: forward.prefill(ours, decisions.method, [spliced]))  # noqa: B023
        assert stages["decoder"] + stages["lm_head"] == prefill - decisions.flops
        if name not in FOLLOWS_CONTENT:
            assert stages["reduce"] == splice_flops + decisions.flops


@dataclass(frozen=True, kw_only=True)
class OneCut(Method):
    """Cut before layer 2 to `allowed` tokens, and keep `kept` of them."""

    spends = "own"
    allowed: int
    kept: int

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return (Cut(2, self.allowed, 2),)

    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(self.kept))


def test_flops_are_of_the_tokens_that_are_kept_not_of_those_a_cut_allows() -> None:
    ours = backbone("llava")
    sparing, exact = (
        flops_only.count_method(ours, OneCut(allowed=allowed, kept=4), RULE, SIZES_HW["llava"], 30)
        for allowed in (8, 4)
    )
    assert sparing.visual_tokens_per_layer == exact.visual_tokens_per_layer
    assert sparing.visual_tokens_per_layer[1:] == (sparing.visual_tokens_per_layer[0], 4, 4)
    assert sparing.stages_flops["decoder"] == exact.stages_flops["decoder"]


class CountedDecisions:
    """A method whose decisions inside the LLM are counted when the engine calls them."""

    def __init__(self, method: Method, count: Callable[..., int]) -> None:
        self.flops, decisions = 0, self

        class Counting(type(method)):  # type: ignore[misc]
            def select(self, view: LayerView) -> Reduction:
                reductions: list[Reduction] = []
                decisions.flops += count(lambda: reductions.append(super(Counting, self).select(view)))
                return reductions[0]

        self.method = copy.copy(method)
        object.__setattr__(self.method, "__class__", Counting)


@pytest.fixture(scope="module")
def table4() -> dict[str, FlopsRow]:
    """LLaVA-1.5-7B at 64 tokens with 66 of text, the setting of the paper's Table 4."""
    official = {"name": "pyramiddrop", "params": {"preset": "official"}}
    requested = manifest("llava-1.5", ["none", "diffprune", "prunesid", "holov", official], budgets={"keep": [64]})
    return {row.method: row for row in flops_only.count_manifest(requested, text_tokens=66)}


@pytest.mark.parametrize(
    ("method", "teraflops", "within"),
    [
        ("none", 8.89, 0.02),
        ("diffprune", 2.13, 0.02),
        ("prunesid", 2.13, 0.02),
        ("pyramiddrop", 4.89, 0.02),
        ("holov", 2.15, 0.03),
    ],
)
def test_the_papers_table_4(table4: dict[str, FlopsRow], method: str, teraflops: float, within: float) -> None:
    assert table4[method].total == pytest.approx(teraflops * 1e12, rel=within)


def test_all_of_the_scorer_is_counted(table4: dict[str, FlopsRow]) -> None:
    """Input map, two blocks of width 512 with feed-forward factor 4 over 576 tokens, head."""
    blocks = 2 * (2 * 576 * 12 * 512**2 + 4 * 576**2 * 512)
    assert table4["diffprune"].stages_flops["reduce"] == 2 * 576 * 4096 * 512 + blocks + 2 * 576 * 512


def test_in_llm_methods_pay_for_their_ranking() -> None:
    """FastV reads a row of attention; PyramidDrop also projects every key and one query, at each of its cuts."""
    rows = flops_only.count_manifest(
        manifest("llava-1.5", ["fastv", "pyramiddrop"], budgets={"keep": [64]}), text_tokens=66
    )
    fastv, pyramiddrop = (row.stages_flops["reduce"] for row in rows)
    assert fastv == 2 * 642 * 4096
    lengths = [66 + rows[1].visual_tokens_per_layer[layer - 1] for layer in (2, 8, 16)]
    assert pyramiddrop == sum(2 * 4096 * (length * 4096 + 4096 + length) for length in lengths)


@pytest.mark.parametrize("name", backbones.FAMILIES)
def test_every_backbone_is_counted_without_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_cached", lambda *_: pytest.fail("looked for weights in the hub's cache"))
    requested = manifest(name, ["none", "grid", "fastv"], budgets={"prune_rate": [0.778]})
    none, grid, fastv = flops_only.count_manifest(requested, text_tokens=66, image_hw=(112, 112))
    assert none.total > grid.total > 0
    assert grid.stages_flops["tower"] == none.stages_flops["tower"]
    assert fastv.num_visual == pytest.approx(grid.num_visual, abs=none.num_newlines / 4 + 1)


def test_anyres_newlines_are_apart_from_the_text() -> None:
    none, grid = flops_only.count_manifest(
        manifest("llava-next", ["none", "grid"], budgets={"keep": [320]}), text_tokens=66
    )
    assert (none.num_visual, none.num_newlines, none.text_tokens) == (2880, 48, 66)
    assert (grid.num_visual, grid.num_newlines) == (320, 0)


def test_a_method_that_refuses_has_a_row_without_counts() -> None:
    requested = manifest("qwen2.5-vl-3b", ["none", "cls-attention"], budgets={"prune_rate": [0.9]})
    none, refused = flops_only.count_manifest(requested, text_tokens=10, image_hw=(224, 224))
    assert (none.refusal, refused.stages_flops) == ("", {})
    assert refused.refusal.startswith("cls-attention needs a vision tower with a CLS token")


def test_an_error_is_raised_when_all_methods_refuse() -> None:
    with pytest.raises(UnsupportedError, match="needs a vision tower with a CLS token"):
        flops_only.count_manifest(manifest("qwen2.5-vl-3b", ["cls-attention"], budgets={"keep": [9]}), text_tokens=10)


def invalid_settings() -> Iterator[tuple[Any, dict[str, Any], str]]:
    yield "llava-1.5", {"text_tokens": 0}, "--text-tokens: must be at least 1, got 0"
    image_size = {"text_tokens": 9, "image_hw": (0, 5)}
    yield "llava-1.5", image_size, "--image-size: must be at least 1 pixel a side, got 0 x 5"
    for setting, value in (("weights", "some/folder"), ("revision", "main"), ("quantize", "4bit")):
        yield {"name": "llava-1.5", setting: value}, {"text_tokens": 9}, f"--{setting} has no effect, remove it"
    yield {"name": "llava-1.5", "device_map": "auto"}, {"text_tokens": 9}, "--device-map has no effect, remove it"


@pytest.mark.parametrize(("entry", "settings", "sentence"), invalid_settings())
def test_an_invalid_setting_is_refused(entry: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        flops_only.count_manifest(manifest(entry, ["none"]), **settings)


def test_grad_state_is_restored() -> None:
    before = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    flops_only.count_manifest(manifest("toy-llava", ["none"]), text_tokens=66)
    assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before
