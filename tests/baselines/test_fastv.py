"""FastV: vectors from the official code, and M against the tables that publish it."""

from pathlib import Path
from typing import Any

import pytest
from dpbench_baselines.fastv import FastV
from golden_vectors import find_vectors

from dpbench import registry
from dpbench.conformance.vectors import run
from dpbench.engine import pruned_prompt
from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, Method

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("fastv")


def only_cut(method: Method, num_visual: int, num_layers: int, count: int, kind: Any = "mean") -> Cut:
    (cut,) = pruned_prompt.validate_cuts(method, num_visual, num_layers, Budget(count, kind))
    return cut


def mean(method: Method, num_visual: int, num_layers: int, count: int = 64) -> float:
    cuts = pruned_prompt.validate_cuts(method, num_visual, num_layers, Budget(count))
    return sum(pruned_prompt.per_layer(num_visual, num_layers, cuts)) / num_layers


def test_the_vectors_are_there() -> None:
    kinds = [run.check(FastV(), path).kind for path in GOLDENS]
    assert kinds == ["attn_row"] * 3 + ["layer"] * 3 + ["e2e"] * 2


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_vector_passes(path: Path) -> None:
    done = run.check(registry.load("fastv"), path)
    assert done.passed, done.detail


@pytest.mark.parametrize(
    ("layer", "count", "kept", "dropped", "reached"),
    [
        (2, 192, 166, 0.7111, 191.62),
        (2, 128, 98, 0.8296, 127.88),
        (2, 64, 30, 0.9481, 64.12),
        (3, 192, 152, 0.7356, 191.75),
        (3, 128, 82, 0.8582, 128.31),
        (3, 64, 11, 0.9808, 63.97),
    ],
)
def test_the_count_of_llava_1_5_7b_is_the_published_one(
    layer: int, count: int, kept: int, dropped: float, reached: float
) -> None:
    cut = only_cut(FastV(layer=layer), 576, 32, count)
    assert cut == Cut(layer, kept, layer - 1)
    assert 1 - kept / 576 == pytest.approx(dropped, abs=3e-3)
    assert mean(FastV(layer=layer), 576, 32, count) == pytest.approx(reached, abs=5e-3)
    if layer == 2:
        assert only_cut(FastV(), 576, 32, count) == cut


@pytest.mark.parametrize(("count", "kept"), [(192, 172), (128, 104), (64, 37)])
def test_the_count_of_llava_1_5_13b(count: int, kept: int) -> None:
    assert only_cut(FastV(), 576, 40, count) == Cut(2, kept, 1)


@pytest.mark.parametrize(("layer", "count", "kept"), [(2, 640, 491), (2, 320, 149), (1, 160, 72)])
def test_the_count_of_llava_next(layer: int, count: int, kept: int) -> None:
    assert only_cut(FastV(layer=layer), 2880, 32, count).keep == kept


@pytest.mark.parametrize("layer", [None, 2, 3])
def test_a_mean_out_of_reach_names_what_is_in_reach(layer: int | None) -> None:
    least = 270 if layer == 3 else 180
    with pytest.raises(ConfigError, match=f"mean of 160 of 2880 .* between {least} and 2880"):
        FastV(layer=layer).cuts(2880, 32, Budget(160))
    assert FastV(layer=layer).cuts(2880, 32, Budget(least))[0].keep == 0
    with pytest.raises(ConfigError, match="cannot reach"):
        FastV(layer=layer).cuts(2880, 32, Budget(least - 1))


@pytest.mark.parametrize(("share", "kept"), [(1 / 3, 0.282), (2 / 9, 0.162), (1 / 9, 0.043)])
def test_the_share_of_qwen2_5_vl_7b(share: float, kept: float) -> None:
    for num in (360, 1440, 9999):
        assert only_cut(FastV(), num, 28, round(num * share)).keep / num == pytest.approx(kept, abs=2e-3)


def test_it_cuts_after_a_sixteenth_of_the_layers() -> None:
    depths = {6: 1, 12: 1, 24: 2, 28: 2, 32: 2, 40: 2, 48: 3, 64: 4}
    assert {depth: only_cut(FastV(), 576, depth, 300).layer for depth in depths} == depths


def test_the_mean_over_layers_is_within_one_token_of_the_budget() -> None:
    for num in (1, 16, 144, 391, 576, 2880):
        for depth in (2, 6, 12, 28, 32, 40):
            for layer in sorted({1, 2, 3, depth // 2} & set(range(1, depth))):
                least = -(-layer * num // depth)
                for count in sorted({least, (least + num) // 2, (3 * least + num) // 4, num - 1, num} - {0}):
                    if count >= least:
                        assert abs(mean(FastV(layer=layer), num, depth, count) - count) <= 1


@pytest.mark.parametrize("count", [1, 64, 575, 576, 1000])
def test_a_final_budget_is_met_exactly(count: int) -> None:
    assert only_cut(FastV(), 576, 32, count, "final").keep == min(count, 576)


@pytest.mark.parametrize(
    ("params", "cut", "reached"),
    [
        ({}, Cut(2, 288, 1), 306),
        ({"ratio": 0.75}, Cut(2, 144, 1), 171),
        ({"layer": 3}, Cut(3, 288, 2), 315),
        ({"layer": 3, "ratio": 0.75}, Cut(3, 144, 2), 184.5),
    ],
)
def test_the_official_preset_reads_its_own_mean_whatever_the_budget(
    params: dict[str, object], cut: Cut, reached: float
) -> None:
    method = registry.load("fastv", {"preset": "official", **params})
    for count in (1, 64, 576):
        assert only_cut(method, 576, 32, count) == cut
        assert only_cut(method, 576, 32, count, "final") == cut
        assert mean(method, 576, 32, count) == reached
    assert method.spends == "own"
    assert FastV().spends == "per-image"


def test_a_ratio_is_not_ignored_without_the_preset() -> None:
    method = FastV(ratio=0.75)
    assert only_cut(method, 576, 32, 64) == Cut(2, 144, 1)
    assert method.spends == "own"


@pytest.mark.parametrize(
    ("num", "ratio", "kept"), [(25, 0.5, 12), (27, 0.5, 14), (33, 0.5, 16), (144, 0.778, 32), (9, 1.0, 0), (9, 0.0, 9)]
)
def test_the_official_count_rounds_half_to_even(num: int, ratio: float, kept: int) -> None:
    assert only_cut(FastV(ratio=ratio), num, 32, 1).keep == kept


def test_a_prompt_without_images_is_not_cut() -> None:
    assert pruned_prompt.validate_cuts(FastV(), 0, 32, Budget(64)) == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layer": 0}, "layer >= 1"),
        ({"layer": 1.5}, "fastv.layer"),
        ({"ratio": -0.1}, "0 to 1"),
        ({"ratio": 1.1}, "0 to 1"),
        ({"preset": "paper"}, "fastv.preset"),
        ({"k": 2}, "no parameter 'k'"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("fastv", params)


@pytest.mark.parametrize("preset", ["mean", "official"])
def test_a_cut_behind_the_last_layer_is_refused(preset: Any) -> None:
    with pytest.raises(ConfigError, match="below the decoder's 6 layers, got 6"):
        FastV(layer=6, preset=preset).cuts(40, 6, Budget(20))
