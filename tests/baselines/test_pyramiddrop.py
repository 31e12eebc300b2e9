"""PyramidDrop: vectors from the official code, and the ratio against the tables that publish it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dpbench_baselines.pyramiddrop import PyramidDrop
from golden_vectors import find_vectors

from dpbench import registry
from dpbench.conformance.vectors import run
from dpbench.engine import pruned_prompt
from dpbench.errors import ConfigError
from dpbench.method import Budget, Method

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("pyramiddrop")


def schedule(
    method: Method, num_visual: int, num_layers: int, count: int = 64, kind: Any = "mean"
) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Return the layers cut before, what each cut keeps, and the mean over layers."""
    cuts = pruned_prompt.validate_cuts(method, num_visual, num_layers, Budget(count, kind))
    assert all(cut.probe == cut.layer for cut in cuts)
    mean = sum(pruned_prompt.per_layer(num_visual, num_layers, cuts)) / num_layers
    return tuple(cut.layer for cut in cuts), tuple(cut.keep for cut in cuts), mean


def test_the_vectors_are_there() -> None:
    kinds = [run.check(PyramidDrop(), path).kind for path in GOLDENS]
    assert kinds == ["stage"] * 5 + ["batch"] + ["e2e"] * 2


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_vector_passes(path: Path) -> None:
    done = run.check(registry.load("pyramiddrop"), path)
    assert done.passed, done.detail


PUBLISHED = [
    (192, (2, 8, 16), 0.5596, (322, 180, 100), 191.38),
    (192, (8, 16, 24), 0.2531, (145, 36, 9), 191.50),
    (192, (2, 4, 6, 8), 0.6960, (400, 279, 194, 135), None),
    (128, (2, 8, 16), 0.4197, (241, 101, 42), 127.44),
    (128, (2, 4, 6, 8), 0.5868, (337, 198, 116, 68), None),
    (64, (2, 8, 16), 0.1916, (110, 21, 4), 63.88),
    (64, (2, 4, 6, 8), 0.3690, (212, 78, 28, 10), None),
]


@pytest.mark.parametrize(("count", "layers", "ratio", "kept", "reached"), PUBLISHED)
def test_the_counts_of_llava_1_5_7b_are_the_published_ones(
    count: int, layers: tuple[int, ...], ratio: float, kept: tuple[int, ...], reached: float | None
) -> None:
    got = schedule(PyramidDrop(layers=layers), 576, 32, count)
    assert got[:2] == (layers, kept)
    assert reached is None or got[2] == pytest.approx(reached, abs=6e-3)
    assert kept[0] / 576 == pytest.approx(ratio, abs=2e-3)
    if layers == (2, 8, 16):
        assert schedule(PyramidDrop(), 576, 32, count) == got


@pytest.mark.parametrize(("count", "ratio"), [(192, 0.5920), (128, 0.4635), (64, 0.2547)])
def test_the_ratio_of_llava_1_5_13b(count: int, ratio: float) -> None:
    _, kept, _ = schedule(PyramidDrop(layers=(2, 8, 16)), 57_600, 40, 100 * count)
    for stage, each in enumerate(kept, start=1):
        assert each / 57_600 == pytest.approx(ratio**stage, abs=1e-4)


@pytest.mark.parametrize(("count", "kept"), [(640, (1208, 507, 212)), (320, (551, 105, 20))])
def test_the_counts_of_llava_next(count: int, kept: tuple[int, ...]) -> None:
    assert schedule(PyramidDrop(), 2880, 32, count)[1] == kept


@pytest.mark.parametrize(
    ("layers", "num", "count", "least"),
    [(None, 2880, 160, 180), ((8, 16, 24), 576, 128, 144), ((8, 16, 24), 576, 64, 144), (None, 2880, 179, 180)],
)
def test_a_mean_out_of_reach_names_what_is_in_reach(
    layers: tuple[int, ...] | None, num: int, count: int, least: int
) -> None:
    method = PyramidDrop(layers=layers)
    with pytest.raises(ConfigError, match=f"mean of {count} of {num} .* between {least} and {num}"):
        method.cuts(num, 32, Budget(count))
    assert schedule(method, num, 32, least)[1] == (0, 0, 0)


def test_the_mean_preset_scales_with_the_depth() -> None:
    depths = {4: (1, 2, 3), 6: (1, 2, 3), 12: (1, 3, 6), 28: (2, 7, 14), 32: (2, 8, 16), 40: (2, 10, 20)}
    assert {depth: schedule(PyramidDrop(), 576, depth, 300)[0] for depth in depths} == depths
    with pytest.raises(ConfigError, match="2 layers are too few for cuts at"):
        PyramidDrop().cuts(576, 2, Budget(300))


def test_the_mean_over_layers_is_within_one_token_of_the_budget() -> None:
    lists = (None, (1,), (1, 2), (1, 4), (2, 4, 5))
    for num in (1, 16, 144, 391, 576, 2880):
        for depth in (6, 12, 28, 32, 40):
            for layers in lists:
                first = (layers or schedule(PyramidDrop(), num, depth, num)[0])[0]
                least = -(-first * num // depth)
                for count in sorted({least, (least + num) // 2, (3 * least + num) // 4, num - 1, num}):
                    if count >= max(least, 1):
                        _, kept, mean = schedule(PyramidDrop(layers=layers), num, depth, count)
                        assert abs(mean - count) <= 1
                        assert all(a >= b for a, b in pairwise((num, *kept)))


@pytest.mark.parametrize("count", [1, 2, 64, 300, 575, 576, 1000])
def test_a_final_budget_is_met_exactly(count: int) -> None:
    for layers in (None, (1,), (1, 2, 3, 4, 5)):
        _, kept, _ = schedule(PyramidDrop(layers=layers), 576, 32, count, "final")
        assert kept[-1] == min(count, 576)
        assert all(a >= b for a, b in pairwise((576, *kept)))


@pytest.mark.parametrize(("depth", "mean"), [(32, 270), (40, 230.4)])
def test_the_official_preset_reads_its_own_mean_whatever_the_budget(depth: int, mean: float) -> None:
    method = registry.load("pyramiddrop", {"preset": "official"})
    for count in (1, 64, 576):
        for kind in ("mean", "final"):
            assert schedule(method, 576, depth, count, kind) == ((8, 16, 24), (288, 144, 72), mean)
    assert method.spends == "own"
    assert PyramidDrop().spends == "per-image"


def test_the_official_layers_are_scaled_where_the_decoder_is_too_shallow_for_them() -> None:
    official = PyramidDrop(preset="official")
    depths = {12: (3, 6, 9), 24: (6, 12, 18), 25: (8, 16, 24), 28: (8, 16, 24)}
    assert {depth: schedule(official, 144, depth)[0] for depth in depths} == depths


@pytest.mark.parametrize(
    ("params", "num", "kept"),
    [
        ({"ratio": 0.19}, 576, (109, 20, 3)),
        ({"ratio": 0.0}, 576, (0, 0, 0)),
        ({"ratio": 1.0}, 576, (576, 576, 576)),
        ({"ratios": [0.5, 0.25, 0.125]}, 99, (49, 24, 12)),
        ({"ratios": [0.29, 0.29, 0.0]}, 100, (28, 28, 0)),
        ({"ratios": [1, 0.5, 0.5]}, 33, (33, 16, 16)),
    ],
)
def test_ratios_given_count_whatever_the_budget(params: dict[str, object], num: int, kept: tuple[int, ...]) -> None:
    method = registry.load("pyramiddrop", params)
    assert schedule(method, num, 32, 7)[:2] == ((2, 8, 16), kept)
    assert method.spends == "own"


def test_the_authors_own_advice_for_64() -> None:
    assert schedule(PyramidDrop(layers=(2, 8, 16), ratio=0.19), 576, 32)[2] == pytest.approx(62.94, abs=5e-3)


def test_layers_given_are_those_of_the_decoder() -> None:
    method = registry.load("pyramiddrop", {"layers": [1, 4], "ratios": [0.6, 0.2]})
    assert schedule(method, 45, 6) == ((1, 4), (27, 9), (45 + 3 * 27 + 2 * 9) / 6)


def test_a_prompt_without_images_is_not_cut() -> None:
    assert pruned_prompt.validate_cuts(PyramidDrop(), 0, 32, Budget(64)) == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": []}, "must rise from at least 1"),
        ({"layers": [0, 4]}, "must rise from at least 1"),
        ({"layers": [4, 4]}, "must rise from at least 1"),
        ({"layers": "8"}, "pyramiddrop.layers"),
        ({"ratio": -0.1}, "0 to 1"),
        ({"ratio": 1.1}, "0 to 1"),
        ({"ratio": 0.5, "ratios": [0.5, 0.2, 0.1]}, "not both"),
        ({"ratios": [0.5, 0.6, 0.1]}, "must fall"),
        ({"ratios": [1.5, 0.6, 0.1]}, "must fall"),
        ({"ratios": [0.5, 0.1, -0.1]}, "must fall"),
        ({"ratios": [float("nan"), 0.1, 0.1]}, "must fall"),
        ({"ratios": [0.5, 0.1]}, "one for each of 3 layers, got 2"),
        ({"ratios": []}, "one for each of 3 layers, got 0"),
        ({"layers": [1, 4], "ratios": [0.5, 0.1, 0.1]}, "one for each of 2 layers, got 3"),
        ({"preset": "paper"}, "pyramiddrop.preset"),
        ({"layer_list": [8]}, "no parameter 'layer_list'"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("pyramiddrop", params)


def test_a_cut_behind_the_last_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"below the decoder's 6 layers, got \[2, 6\]"):
        PyramidDrop(layers=(2, 6)).cuts(40, 6, Budget(20))
