"""HiRED against vectors made by the official code, and by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines.hired import HiRED, tile_budgets, view_budgets
from golden_vectors import find_vectors, load_arrays
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dpbench.conformance.vectors import run
from dpbench.conformance.vectors.tiles import best_resolution, unpadded
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import VisualTokens

GOLDENS = find_vectors("hired")
TILED = [path for path in GOLDENS if "cls_attn_budget" in np.load(path)]
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def visual(select_VHN: Tensor, first_VHN: Tensor | None = None) -> VisualTokens:
    num_views, _, num = select_VHN.shape
    index = torch.arange(num_views * num, device=select_VHN.device)
    rows = {22: select_VHN} | ({} if first_VHN is None else {0: first_VHN})
    return VisualTokens(
        embeds_ND=index[:, None].float(),
        hidden_NC=index[:, None].float(),
        view_N=index // num,
        row_N=index % num // 24,
        col_N=index % num % 24,
        read_N=torch.ones_like(index, dtype=torch.bool),
        slot_N=index,
        cls_attention={layer: each.transpose(0, 1).flatten(1) for layer, each in rows.items()},
        generator=torch.Generator(),
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def test_the_vectors_are_there() -> None:
    assert (len(GOLDENS), len(TILED)) == (5, 3)


@pytest.mark.parametrize("path", TILED, ids=lambda path: path.stem)
def test_the_budgets_equal_upstreams(path: Path) -> None:
    vector = load_arrays(path)
    first = torch.from_numpy(vector["cls_attn_budget"])[0].sum(0)
    num_views, _, num = vector["cls_attn_select"].shape
    keep = int(num_views * num * float(vector["token_budget_rate"]))
    budgets = view_budgets(first, num_views - 1, keep, float(vector["alpha"]))
    assert budgets.tolist() == [int(vector["full_budget"]), *vector["sub_budgets"]]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_reduce_keeps_what_upstream_keeps(path: Path) -> None:
    vector = load_arrays(path)
    first = torch.from_numpy(vector["cls_attn_budget"]) if path in TILED else None
    tokens = visual(torch.from_numpy(vector["cls_attn_select"]), first)
    method = HiRED(token_budget_rate=float(vector["token_budget_rate"]), alpha=float(vector.get("alpha", 0.5)))
    indices = method.reduce(tokens, 1).indices_K
    assert indices.tolist() == np.flatnonzero(vector["mask"]).tolist()


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_vectors_pass_through_the_contract(path: Path) -> None:
    done = run.check(HiRED(), path)
    assert done.passed, done.detail


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((GOLDENS[4], name) for name in ("cls_attn_select", "token_budget_rate", "mask", "kept")),
        *((path, name) for path in TILED[1:] for name in ("cls_attn_budget", "cls_attn_select", "alpha", "mask")),
        *((path, name) for path in TILED[1:] for name in ("full_budget", "sub_budgets", "packed_source", "packed_len")),
        *((path, "token_budget_rate") for path in TILED),
        (TILED[2], "image_size_hw"),
        (TILED[2], "grid_pinpoints"),
    ],
)
def test_a_vector_with_other_content_fails(path: Path, name: str, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    other = arrays[name] * 0.8 if arrays[name].dtype.kind == "f" and not arrays[name].ndim else None
    if name == "grid_pinpoints":
        other = np.array([[672, 672]])
    elif other is None:
        other = arrays[name] + 1 if arrays[name].size == 1 else np.flip(arrays[name])
    np.savez(tmp_path / "vector.npz", **arrays | {name: other})
    assert not run.check(HiRED(), tmp_path / "vector.npz").passed


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "vector.npz", **load_arrays(GOLDENS[0]) | {"model": "blip"})
    assert "model 'blip'" in run.check(HiRED(), tmp_path / "vector.npz").detail


@pytest.mark.parametrize(
    ("size", "canvas"),
    [((600, 600), (672, 672)), ((480, 640), (672, 672)), ((330, 990), (336, 1008)), ((900, 300), (1008, 336))],
)
def test_images_get_the_canvas_that_holds_most_of_them(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert best_resolution(size, PINPOINTS) == canvas


def test_padding_lies_on_both_sides() -> None:
    assert unpadded((480, 640), (48, 48)) == (range(6, 42), range(48))
    assert unpadded((640, 480), (48, 48)) == (range(48), range(6, 42))
    assert unpadded((600, 600), (48, 48)) == (range(48), range(48))


@pytest.mark.parametrize(("rate", "count"), [(0.1111, 63), (1 / 9, 64), (0.2, 115)])
def test_a_rate_rounds_down_whatever_the_budget(rate: float, count: int) -> None:
    tokens = visual(noise(1, 2, 576))
    method = HiRED(token_budget_rate=rate)
    assert method.spends == "own"
    assert len(method.reduce(tokens, 5).indices_K) == count


def test_one_view_keeps_the_highest_in_raster_order() -> None:
    reduction = HiRED().reduce(visual(torch.tensor([[[0.1, 0.5, 0.0, 0.3], [0.3, 0.1, 0.0, 0.4]]])), 2)
    assert reduction.indices_K.tolist() == [1, 3]


def test_shares_are_counts_in_bands_of_the_raster_rounded_down() -> None:
    first = torch.tensor([9.0, 8.0, 0.0, 0.0, 7.0, 0.0, 6.0, 0.0])
    # marked: 0 1 4 6; bands 0-1, 2-3, 4-5, 6-7 hold 2, 0, 1, 1 of 4
    assert tile_budgets(first, 4, 7, 4).tolist() == [3, 0, 1, 1]
    assert view_budgets(first, 4, 15, 0.5).tolist() == [7, 4, 0, 2, 2]


def test_a_view_gets_no_more_than_it_has() -> None:
    assert view_budgets(torch.arange(4.0), 2, 12, 0.5).tolist() == [4, 0, 4]
    assert tile_budgets(torch.tensor([1.0, 1.0, 0.0, 0.0]), 2, 7, 2).tolist() == [4, 0]


@pytest.mark.parametrize(("keep", "alpha", "wanted"), [(1, 0.5, [1, 0, 0]), (3, 1.0, [3, 0, 0]), (4, 0.0, [0, 2, 2])])
def test_small_budgets_and_the_ends_of_alpha(keep: int, alpha: float, wanted: list[int]) -> None:
    assert view_budgets(torch.tensor([0.0, 0.0, 1.0, 1.0]), 2, keep, alpha).tolist() == wanted


def test_nothing_to_split_by_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower alpha or the budget"):
        view_budgets(torch.arange(4.0), 2, 8, 1.0)


def test_tiles_follow_the_canvas_and_are_chosen_by_their_own_attention() -> None:
    select, first = noise(3, 2, 16), noise(3, 2, 16, seed=1)
    index = torch.arange(16)
    slots = [index, 16 + index // 4 * 8 + index % 4, 20 + index // 4 * 8 + index % 4]
    tokens = replace(visual(select, first), slot_N=torch.cat(slots))
    indices = HiRED().reduce(tokens, 24).indices_K
    places = tokens.slot_N[indices]
    assert torch.equal(places, places.sort().values)
    assert (indices < 16).sum() == 12
    for view in range(3):
        mine = (indices[indices // 16 == view] - 16 * view).sort().values
        assert torch.equal(mine, select[view].sum(0).topk(len(mine)).indices.sort().values)


def test_what_is_kept_in_padding_is_lost_not_replaced() -> None:
    tokens = visual(noise(3, 2, 16), noise(3, 2, 16, seed=1))
    read = torch.arange(48) % 16 >= 4
    padded = replace(tokens, read_N=read, slot_N=torch.where(read, read.long().cumsum(0) - 1, -1))
    one, two = (HiRED().reduce(each, 24).indices_K for each in (tokens, padded))
    assert one.sort().values.tolist() == two.sort().values.tolist()


@pytest.mark.parametrize("keep", [1, 2, 7, 24, 47, 48])
@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_each_token_once_and_no_more_than_the_budget(keep: int, tiles: int) -> None:
    num = 17
    tokens = visual(noise(tiles + 1, 2, num, seed=keep), noise(tiles + 1, 2, num, seed=9))
    indices = HiRED().reduce(tokens, keep).indices_K
    assert 0 < len(indices) == len(indices.unique()) <= keep


def test_one_view_never_waits_for_the_device_beyond_counting_views() -> None:
    with FakeTensorMode():
        attention = torch.empty(1, 2, 36, device="cuda")
        with pytest.raises(DataDependentOutputException):
            HiRED().reduce(visual(attention), 9)
        budgets = view_budgets(attention[0, 0], 4, 40, 0.5)
    assert budgets.device.type == "cuda"


def test_ties_go_to_the_earlier_token() -> None:
    assert HiRED().reduce(visual(torch.ones(1, 2, 8)), 3).indices_K.tolist() == [0, 1, 2]


def test_needs() -> None:
    both = frozenset({"cls_attention", "cls_attention[0]"})
    assert HiRED().needs(both | {"keys_Nd"}) == both
    assert HiRED().needs(frozenset({"cls_attention"})) == {"cls_attention"}
    with pytest.raises(UnsupportedError, match="CLS token"):
        HiRED().needs(frozenset({"received_attention_N"}))


def test_tiles_without_the_first_layer_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="first layer"):
        HiRED().reduce(visual(noise(3, 2, 16)), 12)


@pytest.mark.parametrize(
    ("params", "word"),
    [({"alpha": 1.5}, "alpha"), ({"alpha": -0.1}, "alpha"), ({"token_budget_rate": 0.0}, "token_budget_rate")],
)
def test_bad_parameters_are_refused(params: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        HiRED(**params)
