"""DART: vectors from a public code, the counts that the paper's ratios give, and small cases by hand."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines import dart
from dpbench_baselines.dart import DART
from golden_vectors import find_vectors, load_tensors
from torch import Tensor

from dpbench import registry
from dpbench.conformance.vectors import run
from dpbench.engine import pruned_prompt
from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, Method

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("dart")


def kept(method: Method, count: int, kind: Any = "final", num_visual: int = 576, num_layers: int = 32) -> int:
    (cut,) = pruned_prompt.validate_cuts(method, num_visual, num_layers, Budget(count, kind))
    assert cut == Cut(cut.layer, cut.keep, cut.layer - 1)
    return cut.keep


def test_the_vectors_are_there() -> None:
    assert [run.check(DART(), path).kind for path in GOLDENS] == ["pivots"] * 4


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_vector_passes(path: Path) -> None:
    done = run.check(registry.load("dart"), path)
    assert done.passed, done.detail


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_step_of_every_vector(path: Path) -> None:
    want = load_tensors(path)
    start, num = int(want["v_start"]), int(want["n_visual"])
    visual, text = torch.arange(start, start + num), torch.arange(start + num, len(want["key_states"]))
    norms_L = want["key_states"].float().abs().sum((1, 2))
    image_P = dart.largest(norms_L, visual, int(want["pivot_image"]))
    text_P = dart.largest(norms_L, text, int(want["pivot_text"]))
    assert torch.equal(image_P, want["pivot_image_idx"])
    assert torch.equal(text_P, want["pivot_text_idx"])
    order = dart.set_order(image_P.tolist(), text_P.tolist())
    assert order == want["pivot_order"].tolist()
    cosine_PN = dart.cosines(want["hidden_norm"][order], want["hidden_norm"][visual])
    shares = [int(want["token_topk"])] * len(order)
    picks = dart.least_similar(cosine_PN, torch.isin(visual, image_P), shares)
    for got, wanted in zip(picks, want["picks"], strict=True):
        assert torch.equal(visual[got].sort().values, wanted)


@pytest.mark.parametrize(
    "name", ["key_states", "hidden_norm", "v_start", "reduction_ratio", "pivot_image", "pivot_text"]
)
def test_a_vector_with_other_content_fails(name: str, tmp_path: Path) -> None:
    with np.load(GOLDENS[0]) as arrays:
        changed = {key: arrays[key] for key in arrays.files}
    array = changed[name]
    changed[name] = np.flip(array, 0) if array.ndim else np.asarray(array * 0.5, array.dtype)
    np.savez(tmp_path / "dart_x.npz", **changed)
    assert not run.check(DART(), tmp_path / "dart_x.npz").passed


def test_pivots_in_another_order_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dart, "set_order", lambda image, text: sorted([*image, *text]))
    assert not all(run.check(DART(), path).passed for path in GOLDENS)


@pytest.mark.parametrize(("ratio", "count"), [(0.6667, 188), (0.7778, 124), (0.8889, 60), (0.778, 124)])
def test_a_ratio_keeps_what_the_paper_code_keeps(ratio: float, count: int) -> None:
    method = registry.load("dart", {"ratio": ratio})
    assert {kept(method, budget, kind) for budget in (1, 64, 576) for kind in ("mean", "final")} == {count}
    assert method.spends == "own"


@pytest.mark.parametrize(("budget", "count"), [(192, 188), (128, 124), (64, 60), (13, 12), (5, 4), (3, 3), (576, 576)])
def test_what_is_left_is_a_whole_number_of_shares(budget: int, count: int) -> None:
    assert kept(DART(), budget) == count
    assert kept(DART(exact=True), budget) == budget
    assert kept(DART(preset="official"), budget, "mean") == count


def test_the_mean_over_layers_is_the_budget_or_less() -> None:
    for num, depth in ((144, 12), (576, 32), (576, 40), (2880, 32), (391, 28)):
        for count in range(num // 8 + 1, num, 37):
            below = (pruned_prompt.per_layer(num, depth, DART().cuts(num, depth, Budget(count))), count)
            assert sum(below[0]) / depth <= count
            assert sum(below[0]) / depth > count - 9
            exact = pruned_prompt.per_layer(num, depth, DART(exact=True).cuts(num, depth, Budget(count)))
            assert abs(sum(exact) / depth - count) <= 1
    assert DART(exact=True).spends == DART().spends == "per-image"


def test_it_cuts_a_sixteenth_down_the_decoder() -> None:
    assert {depth: DART().cuts(144, depth, Budget(100))[0].layer for depth in (4, 12, 28, 32, 40, 64)} == {
        4: 1, 12: 1, 28: 2, 32: 2, 40: 2, 64: 4,
    }  # fmt: skip
    assert DART(preset="official").cuts(144, 12, Budget(100))[0].layer == 2
    assert DART(layer=5).cuts(144, 12, Budget(100))[0].layer == 5


def test_a_mean_out_of_reach_names_what_is_in_reach() -> None:
    with pytest.raises(ConfigError, match=r"mean of 30 of 576 .* between 36 and 576"):
        DART().cuts(576, 32, Budget(30))
    with pytest.raises(ConfigError, match="below the decoder's 6 layers, got 6"):
        DART(layer=6).cuts(576, 6, Budget(300))


@dataclass(frozen=True)
class View:
    """One key head of width 1, and hidden states that the last norm doubles in their first feature."""

    cut: Cut
    keys_HLd: Tensor
    hidden_LD: Tensor
    visual_index_N: Tensor
    text_index: Tensor

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden * torch.tensor([2.0, 1.0])


def view(keep: int, keys: list[float], angles: list[float], num_visual: int) -> Any:
    turned = torch.tensor(angles) * torch.pi / 180
    hidden_LD = torch.stack([turned.cos() / 2, turned.sin()], 1)
    places = torch.arange(len(keys))
    text = torch.cat([places[:1], places[1 + num_visual :]])
    return View(Cut(1, keep, 0), torch.tensor(keys)[None, :, None], hidden_LD, places[1 : 1 + num_visual], text)


#       before | visual                        | behind
KEYS = [9.0, 1.0, -5.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0]
ANGLES = [0.0, 30.0, 0.0, 80.0, 170.0, 100.0, 10.0, 60.0, 90.0]


def test_the_pivots_take_what_is_least_like_them_by_hand() -> None:
    """Token 1 at 0 degrees takes the one at 170, then the text at 60 that at 10; in the other order 4 would follow."""
    method = DART(pivot_image=1, pivot_text=1)
    assert method.select(view(3, KEYS, ANGLES, 6)).indices_K.tolist() == [1, 3, 5]
    assert method.select(view(2, KEYS, ANGLES, 6)).indices_K.tolist() == [1, 3]
    assert method.select(view(1, KEYS, ANGLES, 6)).indices_K.tolist() == [1]
    assert method.select(view(0, KEYS, ANGLES, 6)).indices_K.tolist() == []
    assert method.select(view(6, KEYS, ANGLES, 6)).indices_K.tolist() == list(range(6))


def test_text_pivots_come_from_behind_the_image_only() -> None:
    method, seen = DART(pivot_image=1, pivot_text=1), view(3, KEYS, ANGLES, 6)
    louder = replace(seen, keys_HLd=seen.keys_HLd * torch.tensor([100.0] + [1.0] * 8)[None, :, None])
    assert torch.equal(method.select(louder).indices_K, method.select(seen).indices_K)


@pytest.mark.parametrize("keep", range(7))
@pytest.mark.parametrize("pivot_text", [0, 2, 5])
def test_a_cut_keeps_so_many_however_many_pivots_there_are(keep: int, pivot_text: int) -> None:
    indices = DART(pivot_image=2, pivot_text=pivot_text).select(view(keep, KEYS, ANGLES, 6)).indices_K
    assert len(indices.unique()) == len(indices) == keep
    assert torch.equal(indices, indices.sort().values)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layer": 0}, "layer >= 1"),
        ({"pivot_image": 0}, "pivot_image >= 1"),
        ({"pivot_text": -1}, "pivot_text >= 0"),
        ({"ratio": 1.5}, "0 to 1"),
        ({"ratio": 0.5, "exact": True}, "not both"),
        ({"preset": "paper"}, "dart.preset"),
        ({"pivots": 4}, "no parameter 'pivots'"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("dart", params)
