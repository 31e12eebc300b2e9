"""HoloV against vectors made by the official code, and by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines.holov import (
    HoloV,
    crop_mean,
    crop_quotas,
    crop_relevance,
    crop_rows,
    crop_scores,
    crop_weights,
    cut_crops,
    default_crops,
    fill_quotas,
    rows_or_zeros,
    share_overflow,
    similarity_variance,
    window_order,
)
from golden_vectors import find_vectors
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.vision_utils import get_vision_window_index

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens

GOLDENS = find_vectors("holov")
golden = pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)


def visual(embeds: Tensor, attention: Tensor, *, read: Tensor | None = None, cls: bool = True) -> VisualTokens:
    index = torch.arange(len(embeds), device=embeds.device)
    return VisualTokens(
        embeds_ND=embeds,
        hidden_NC=embeds,
        view_N=torch.zeros_like(index),
        row_N=index // 24,
        col_N=index % 24,
        read_N=torch.ones_like(index, dtype=torch.bool) if read is None else read,
        slot_N=index if read is None else torch.where(read, read.long().cumsum(0) - 1, -1),
        cls_attention={22: attention[None]} if cls else {},
        received_attention_N=None if cls else attention,
        generator=torch.Generator(),
    )


def noise(num: int, *, seed: int = 0, width: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=draw), torch.randn(num, generator=draw).mul(2).softmax(-1)


def load(path: Path) -> tuple[dict[str, Any], Tensor, Tensor]:
    vector = dict(np.load(path))
    embeds = torch.from_numpy(vector["features"]).to(getattr(torch, str(vector["compute_dtype"])))
    return vector, embeds, torch.from_numpy(vector["attn"])


def test_the_vectors_are_there() -> None:
    assert len(GOLDENS) == 13


@golden
def test_each_step_equals_upstream(path: Path) -> None:
    vector, embeds_BND, attention_BN = load(path)
    keep, eps = int(vector["keep"]), float(vector["eps"])
    for image, (embeds_ND, attention_N) in enumerate(zip(embeds_BND, attention_BN, strict=True)):
        crops = cut_crops(torch.arange(len(attention_N)), int(vector["num_crops"]))
        assert crops.size_P.tolist() == vector["crop_sizes"].tolist()
        attention_PM = attention_N[crops.index_PM] * crops.real_PM
        variance_PM = similarity_variance(embeds_ND[crops.index_PM].float(), crops.real_PM, eps)
        relevance_P = crop_relevance(attention_PM, crops, float(vector["attn_scale"]))
        scores_P = crop_scores(relevance_P, crop_mean(variance_PM, crops), weight=float(vector["lam"]), eps=eps)
        torch.testing.assert_close(scores_P, torch.from_numpy(vector["crop_scores"][image]), rtol=1e-5, atol=0.0)
        weights_P = crop_weights(scores_P, eps)
        torch.testing.assert_close(weights_P, torch.from_numpy(vector["crop_weights"][image]), rtol=1e-5, atol=0.0)
        quota_P = crop_quotas(weights_P, keep)
        assert quota_P.tolist() == vector["quota"][image].tolist()
        kept_K = fill_quotas(quota_P, attention_PM, crops, keep)
        assert kept_K.tolist() == vector["kept_idx"][image].tolist()


@golden
def test_reduce_equals_upstream(path: Path) -> None:
    vector, embeds_BND, attention_BN = load(path)
    for image, (embeds_ND, attention_N) in enumerate(zip(embeds_BND, attention_BN, strict=True)):
        method = HoloV(num_crops=int(vector["num_crops"]))
        reduction = method.reduce(visual(embeds_ND, attention_N), int(vector["keep"]))
        kept = torch.from_numpy(vector["kept_idx"][image])
        assert torch.equal(reduction.indices_K, kept)
        assert (reduction.indices_K >= 0).sum() == vector["n_valid"][image]
        assert reduction.embeds_KD is not None
        assert reduction.embeds_KD.dtype == embeds_ND.dtype
        assert torch.equal(reduction.embeds_KD, torch.where(kept[:, None] < 0, 0, embeds_ND[kept]))


@pytest.mark.parametrize(
    ("num", "keep", "cls", "crops"),
    [(576, 64, True, 16), (576, 192, True, 16), (576, 64, False, 16), (576, 192, False, 5), (30, 30, False, 1)],
)
def test_the_number_of_crops_follows_the_variant(num: int, keep: int, cls: bool, crops: int) -> None:
    assert default_crops(visual(*noise(num), cls=cls), keep) == crops


def test_the_qwen_vector_passes_with_its_own_number_of_crops() -> None:
    vector, embeds_BND, attention_BN = load(next(path for path in GOLDENS if np.load(path)["variant"] == "qwen"))
    reduction = HoloV().reduce(visual(embeds_BND[0], attention_BN[0], cls=False), int(vector["keep"]))
    assert reduction.indices_K.tolist() == vector["kept_idx"][0].tolist()


@golden
def test_without_parity_only_lost_rows_change(path: Path) -> None:
    vector, embeds_BND, attention_BN = load(path)
    for image, (embeds_ND, attention_N) in enumerate(zip(embeds_BND, attention_BN, strict=True)):
        method = HoloV(num_crops=int(vector["num_crops"]), parity=False)
        kept = method.reduce(visual(embeds_ND, attention_N), int(vector["keep"])).indices_K.tolist()
        wanted = [token for token in vector["kept_idx"][image].tolist() if token >= 0]
        assert len(set(kept) - {-1}) == int(vector["keep"])
        assert set(wanted) <= set(kept)
        if len(wanted) == len(kept):
            assert kept == wanted


@pytest.mark.parametrize(("num", "crops", "sizes"), [(10, 4, [3, 3, 2, 2]), (8, 4, [2, 2, 2, 2]), (3, 16, [1, 1, 1])])
def test_crops_are_runs_and_the_first_take_the_remainder(num: int, crops: int, sizes: list[int]) -> None:
    cut = cut_crops(torch.arange(num), crops)
    assert cut.size_P.tolist() == sizes
    assert cut.index_PM[cut.real_PM].tolist() == list(range(num))


def test_crops_pass_over_what_unpadding_drops() -> None:
    cut = cut_crops(torch.tensor([0, -1, 1, 2, -1, 3, 4]), 2)
    assert cut.size_P.tolist() == [3, 2]
    assert cut.index_PM[cut.real_PM].tolist() == [0, 2, 3, 5, 6]


def test_crops_follow_reading_order_where_the_tower_has_another() -> None:
    cut = cut_crops(torch.tensor([0, 1, 2, 5, 3, 6]), 2)
    assert cut.index_PM[cut.real_PM].tolist() == [0, 1, 2, 4, 3, 5]


@pytest.mark.parametrize("size", [2, 5])
def test_equal_tokens_vary_by_the_zero_on_the_diagonal_alone(size: int) -> None:
    embeds = torch.tensor([3.0, 4.0]).expand(1, size, 2)
    variance = similarity_variance(embeds, torch.ones(1, size, dtype=torch.bool), 0.0)
    torch.testing.assert_close(variance, torch.full((1, size), 1 / (size - 1)))


def test_orthogonal_tokens_do_not_vary() -> None:
    assert not similarity_variance(2 * torch.eye(5)[None], torch.ones(1, 5, dtype=torch.bool), 1e-6).any()


def test_padding_does_not_touch_the_variance() -> None:
    embeds, _ = noise(5)
    real = torch.tensor([[True] * 5, [True] * 4 + [False], [True] + [False] * 4])
    variance = similarity_variance(embeds.expand(3, 5, 8), real, 1e-6)
    alone = similarity_variance(embeds[None, :4], torch.ones(1, 4, dtype=torch.bool), 1e-6)
    torch.testing.assert_close(variance[1, :4], alone[0])
    assert not variance[~real].any()
    assert not variance[2].any()


def test_a_crop_with_a_variance_weighs_a_little_more() -> None:
    scores = crop_scores(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1.0]), weight=0.09, eps=1e-6)
    torch.testing.assert_close(scores, torch.tensor([2.0, 2.18]))


def test_quotas_round_down_and_the_rest_goes_to_the_heaviest() -> None:
    assert crop_quotas(torch.tensor([0.26, 0.26, 0.38, 0.10]), 10).tolist() == [3, 2, 4, 1]


def hot(num: int = 24) -> tuple[Tensor, Tensor]:
    """Tokens of which the second crop of four draws nearly all attention: its quota overflows."""
    attention = torch.linspace(0.001, 0.002, num)
    attention[num // 4 : num // 2] += 1.0
    return torch.eye(num), attention


def test_with_parity_an_overflow_is_lost_to_zero_rows() -> None:
    embeds, attention = hot()
    reduction = HoloV(num_crops=4).reduce(visual(embeds, attention), 10)
    assert reduction.indices_K.tolist() == [6, 7, 8, 9, 10, 11, -1, -1, -1, -1]
    assert reduction.embeds_KD is not None
    assert torch.equal(reduction.embeds_KD[:6], embeds[6:12])
    assert not reduction.embeds_KD[6:].any()


def test_without_parity_an_overflow_goes_to_the_most_attended_left() -> None:
    embeds, attention = hot()
    reduction = HoloV(num_crops=4, parity=False).reduce(visual(embeds, attention), 10)
    assert reduction.indices_K.tolist() == [6, 7, 8, 9, 10, 11, 23, 22, 21, 20]


def test_sharing_leaves_quotas_that_fit_alone() -> None:
    embeds, attention = noise(24)
    crops = cut_crops(torch.arange(len(embeds)), 4)
    quota = torch.tensor([1, 6, 0, 3])
    assert torch.equal(share_overflow(quota, attention[crops.index_PM], crops, 10), quota)


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("num", [1, 2, 7, 17, 31, 144, 391])
def test_at_most_keep_rows_each_token_once(num: int, parity: bool) -> None:
    for seed, keep in enumerate(sorted({1, (num + 8) // 9, (num + 1) // 2, num})):
        for crops in (None, 1, 3, 16, 500):
            for cls in (True, False):
                data = visual(*noise(num, seed=seed), cls=cls)
                kept = HoloV(num_crops=crops, parity=parity).reduce(data, keep).indices_K
                assert kept.shape == (keep,)
                real = kept[kept >= 0].tolist()
                assert len(real) == len(set(real)) > 0
                assert max(real) < num
                assert parity or len(real) == keep
                assert (kept[len(real) :] == -1).all()


@pytest.mark.parametrize("keep", [16, 32, 48])
def test_the_toy_backbone_keeps_the_most_attended_of_each_crop(keep: int) -> None:
    embeds, attention = noise(144)
    kept = HoloV().reduce(visual(embeds, attention), keep).indices_K
    crops_of = kept[kept >= 0] // 9
    assert torch.equal(crops_of, crops_of.sort().values)
    for crop in range(16):
        mine = kept[(kept >= 0) & (kept // 9 == crop)].tolist()
        ranked = (attention[9 * crop : 9 * crop + 9].argsort(descending=True) + 9 * crop).tolist()
        assert mine == (sorted(mine) if len(mine) == 9 else ranked[: len(mine)])


@pytest.mark.parametrize("num", [1, 10, 144, 150])
def test_without_parity_everything_kept_is_the_identity(num: int) -> None:
    kept = HoloV(parity=False).reduce(visual(*noise(num)), num).indices_K
    assert torch.equal(kept, torch.arange(num))


def test_ties_go_to_the_earlier_token_and_crop() -> None:
    embeds, _ = noise(24)
    data = visual(embeds, torch.full((24,), 1 / 24))
    assert HoloV(num_crops=4, variance_weight=0.0).reduce(data, 6).indices_K.tolist() == [0, 1, 6, 7, 12, 18]


def test_no_attention_at_all_keeps_the_first_token_of_each_crop() -> None:
    embeds, _ = noise(24)
    assert HoloV(num_crops=4).reduce(visual(embeds, torch.zeros(24)), 6).indices_K.tolist() == [0, 6, 12, 18, -1, -1]


@pytest.mark.parametrize("parity", [True, False])
def test_tokens_that_unpadding_drops_are_never_kept(parity: bool) -> None:
    embeds, attention = noise(144)
    read = torch.arange(144) % 12 < 5
    kept = HoloV(parity=parity).reduce(visual(embeds, attention, read=read), 40).indices_K
    assert read[kept[kept >= 0]].all()


@pytest.mark.parametrize("num_read", [0, 1, 3, 17])
def test_fewer_tokens_than_the_budget_leave_zero_rows(num_read: int) -> None:
    embeds, attention = noise(144)
    data = visual(embeds, attention, read=torch.arange(144) < num_read)
    reduction = HoloV(parity=False).reduce(data, 40)
    assert reduction.indices_K.tolist() == [*range(num_read), *[-1] * (40 - num_read)]
    assert reduction.embeds_KD is not None
    assert not reduction.embeds_KD[num_read:].any()


def test_dropped_tokens_change_nothing_for_the_rest() -> None:
    embeds, attention = noise(144)
    read = torch.arange(144) % 12 < 5
    alone = HoloV(parity=False).reduce(visual(embeds[read], attention[read]), 20).indices_K
    among = HoloV(parity=False).reduce(visual(embeds, attention, read=read), 20).indices_K
    assert torch.equal(among, torch.arange(144)[read][alone])


def test_the_row_of_the_select_layer_ranks() -> None:
    embeds, attention = noise(144)
    data = visual(embeds, attention)
    layers = {3: attention.flip(0)[None], 22: torch.stack([attention * 1.5, attention * 0.5])}
    other = replace(data, cls_attention=layers)
    scores = HoloV().reduce(other, 16).scores_N
    assert scores is not None
    torch.testing.assert_close(scores, attention)


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("parity", [True, False])
def test_reduce_stays_on_the_device_and_never_waits_for_it(parity: bool, cls: bool) -> None:
    # Fake tensors carry no values: reading one (.item(), nonzero, a mask as index) or mixing devices raises.
    with FakeTensorMode():
        embeds, attention = torch.empty(150, 8, device="cuda", dtype=torch.half), torch.empty(150, device="cuda")
        reduction = HoloV(parity=parity).reduce(visual(embeds, attention, cls=cls), 40)
        with pytest.raises(DataDependentOutputException):
            reduction.indices_K[0].item()
    assert reduction.embeds_KD is not None
    assert reduction.indices_K.device.type == reduction.embeds_KD.device.type == "cuda"
    assert reduction.embeds_KD.shape == (40, 8)
    assert reduction.embeds_KD.dtype == torch.half


@pytest.mark.gpu
def test_the_gpu_keeps_the_same_tokens() -> None:
    for path in GOLDENS:
        vector, embeds, attention = load(path)
        data = visual(embeds[0].cuda(), attention[0].cuda())
        kept = HoloV(num_crops=int(vector["num_crops"])).reduce(data, int(vector["keep"])).indices_K
        assert kept.tolist() == vector["kept_idx"][0].tolist()


@pytest.mark.parametrize("grid", [(8, 8), (10, 7), (3, 13)])
def test_windows_are_those_of_the_qwen_tower(grid: tuple[int, int]) -> None:
    index = torch.arange(grid[0] * grid[1])
    order, _ = get_vision_window_index(torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]), 2, 112, 14)
    assert torch.equal(window_order(index // grid[1], index % grid[1]), order)


def test_on_qwen_parity_ranks_raster_tokens_by_scores_in_window_order() -> None:
    embeds, attention = noise(60)
    index = torch.arange(60)
    data = replace(visual(embeds, attention, cls=False), row_N=index // 10, col_N=index % 10)
    scores = {parity: HoloV(parity=parity).reduce(data, 20).scores_N for parity in (None, True, False)}
    own, upstream = scores[None], scores[True]
    assert own is not None
    assert upstream is not None
    assert torch.equal(own, attention)
    # window order: 0 1 2 3, 10 11 12 13, ...; the fifth token in raster order gets the score of token 10
    assert torch.equal(upstream[:6], attention[[0, 1, 2, 3, 10, 11]])
    shifted = HoloV().reduce(replace(data, received_attention_N=upstream), 20).indices_K
    assert torch.equal(HoloV(parity=True).reduce(data, 20).indices_K, shifted)
    assert not torch.equal(HoloV().reduce(data, 20).indices_K, shifted)


def test_zero_rows_stand_for_no_token() -> None:
    rows = rows_or_zeros(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1, 0]))
    assert rows.tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]


def test_zero_rows_leave_the_image_as_it_is() -> None:
    embeds = torch.ones(3, 2)
    rows_or_zeros(embeds, torch.tensor([0, -1, -1]))
    assert torch.equal(embeds, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("slots", "crops", "copied"), [([0, 1, 2, 3], 2, False), ([0, 2, 1, 3], 2, True), ([0, 1, 2, 3], 3, True)]
)
def test_crops_of_the_raster_are_read_in_place_and_others_gathered(slots: list[int], crops: int, copied: bool) -> None:
    embeds = torch.arange(8.0).view(4, 2)
    index_PM = cut_crops(torch.tensor(slots), crops).index_PM
    rows_PMD = crop_rows(embeds, index_PM)
    assert torch.equal(rows_PMD, embeds[index_PM])
    assert (rows_PMD.data_ptr() != embeds.data_ptr()) == copied


def test_reduce_leaves_the_image_as_it_is() -> None:
    embeds, attention = noise(32)
    before = embeds.clone()
    HoloV(parity=True).reduce(visual(embeds, attention), 20)
    assert torch.equal(embeds, before)


def test_needs_prefer_the_cls_row() -> None:
    method: Method = HoloV()
    assert method.needs(frozenset({"cls_attention", "received_attention_N"})) == {"cls_attention"}
    assert method.needs(frozenset({"received_attention_N", "keys_Nd"})) == {"received_attention_N"}


def test_needs_refuse_a_tower_without_attention() -> None:
    with pytest.raises(UnsupportedError, match="attention"):
        HoloV().needs(frozenset({"keys_Nd"}))


@pytest.mark.parametrize(
    ("params", "word"), [({"num_crops": 0}, "num_crops"), ({"positions": "original"}, "zero rows")]
)
def test_bad_parameters_are_refused(params: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        HoloV(**params)


def test_without_parity_positions_may_stay_original() -> None:
    assert isinstance(HoloV(parity=False, positions="original").reduce(visual(*noise(30)), 9), Reduction)
