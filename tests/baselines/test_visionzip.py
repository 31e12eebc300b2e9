"""VisionZip against vectors made by the official code, and by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines.tile_canvas import canvas_order
from dpbench_baselines.visionzip import (
    Views,
    VisionZip,
    choose,
    even_targets,
    merge,
    nearest_targets,
)
from golden_vectors import find_vectors, load_arrays
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors import run
from dpbench.engine.decision import Rule, reduce_image
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import VisualTokens

GOLDENS = find_vectors("visionzip")
MERGING, PACKING = GOLDENS[:4], GOLDENS[4:]
merging = pytest.mark.parametrize("path", MERGING, ids=lambda path: path.stem)
SIGNALS = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})


def visual(
    num: int, *, views: int = 1, seed: int = 0, width: int = 8, read: Tensor | None = None, device: str = "cpu"
) -> VisualTokens:
    """Random views; where padding is cut off, the tokens that are read are numbered on."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        if device == "cuda":
            return torch.empty(*shape, device=device)
        return torch.randn(*shape, generator=draw)

    index = torch.arange(num * views, device=device)
    return VisualTokens(
        embeds_ND=noise(num * views, width),
        hidden_NC=noise(num * views, width),
        view_N=index // num,
        row_N=index % num // 4,
        col_N=index % num % 4,
        read_N=torch.ones_like(index, dtype=torch.bool) if read is None else read,
        slot_N=index if read is None else torch.where(read, read.long().cumsum(0) - 1, -1),
        cls_hidden_VC=noise(views, width),
        cls_attention={22: noise(2, num * views).softmax(-1)},
        keys_Nd=noise(num * views, 4),
        generator=torch.Generator(),
    )


def without_cls(tokens: VisualTokens) -> VisualTokens:
    received = tokens.cls_attention[22].mean(0)
    return replace(tokens, cls_attention={}, cls_hidden_VC=None, received_attention_N=received)


def stored_views(vector: dict[str, Any]) -> Views:
    hidden, keys = (torch.from_numpy(vector[name]).float()[:, 1:] for name in ("hidden", "key_metric"))
    scores = torch.from_numpy(vector["cls_attn"]).sum(1)
    return Views(hidden, keys, scores, torch.ones_like(scores, dtype=torch.bool))


def test_the_vectors_are_there() -> None:
    assert [("pack" in np.load(path)) for path in GOLDENS] == [False] * 4 + [True] * 2


@merging
def test_each_step_equals_upstream(path: Path) -> None:
    vector = load_arrays(path)
    views, contextual = stored_views(vector), int(vector["contextual"])
    dominant, targets = choose(views, int(vector["dominant"]) - 1, contextual)
    assert dominant.tolist() == vector["kept_patches"].tolist()
    assert targets.tolist() == vector["contextual_targets"].tolist()
    nearest = nearest_targets(views.keys_VNd, targets)
    for view, pairs in enumerate(torch.from_numpy(vector["merge_pairs"])):
        assert torch.equal(targets[view][nearest[view][pairs[:, 0]]], pairs[:, 1])
    rows = torch.from_numpy(vector["out_tokens"])[:, -contextual:]
    torch.testing.assert_close(merge(views, dominant, targets), rows, rtol=0.0, atol=1e-4)


@merging
def test_reduce_equals_upstream(path: Path) -> None:
    vector = load_arrays(path)
    for image, hidden in enumerate(torch.from_numpy(vector["hidden"]).float()):
        num = len(hidden) - 1
        tokens = replace(
            visual(num),
            hidden_NC=hidden[1:],
            cls_hidden_VC=hidden[:1],
            cls_attention={22: torch.from_numpy(vector["cls_attn"][image])},
            keys_Nd=torch.from_numpy(vector["key_metric"][image, 1:]),
        )
        reduction = VisionZip().reduce(tokens, int(vector["dominant"] + vector["contextual"]))
        wanted = [-1, *vector["kept_patches"][image], *[-1] * int(vector["contextual"])]
        assert reduction.indices_K.tolist() == wanted
        assert reduction.hidden_KC is not None
        rows = torch.from_numpy(vector["out_tokens"][image])
        torch.testing.assert_close(reduction.hidden_KC, rows, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_vectors_pass_through_the_contract(path: Path) -> None:
    done = run.check(VisionZip(), path)
    assert done.passed, done.detail


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((MERGING[3], name) for name in ("hidden", "key_metric", "cls_attn", "out_tokens", "kept_patches")),
        *((MERGING[3], name) for name in ("dominant", "contextual", "contextual_targets", "merge_pairs")),
        *((PACKING[1], name) for name in ("kept_patches", "packed", "dominant", "contextual", "grid_wh")),
    ],
)
def test_a_vector_with_other_content_fails(path: Path, name: str, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    axis = {"grid_wh": 0, "key_metric": 1}.get(name, -1)
    changed = arrays[name] + 1 if arrays[name].ndim == 0 else np.flip(arrays[name], axis)
    if name == "merge_pairs":
        changed = arrays[name].copy()
        changed[:, :20, 1] = changed[:, 0, 1][:, None]
    np.savez(tmp_path / "vector.npz", **arrays | {name: changed})
    assert not run.check(VisionZip(), tmp_path / "vector.npz").passed


@pytest.mark.parametrize("name", ["hidden", "key_metric", "cls_attn", "dominant", "contextual", "out_tokens"])
def test_a_vector_that_lacks_an_array_names_it(name: str, tmp_path: Path) -> None:
    arrays = load_arrays(MERGING[3])
    del arrays[name]
    np.savez(tmp_path / "vector.npz", **arrays)
    assert f"'{name}'" in run.check(VisionZip(), tmp_path / "vector.npz").detail


@pytest.mark.parametrize(
    ("keep", "contextual"), [(64, 10), (128, 20), (192, 30), (32, 5), (16, 2), (12, 2), (2, 0), (1, 0), (576, 90)]
)
def test_ten_of_every_64_rows_are_merged(keep: int, contextual: int) -> None:
    indices = VisionZip().reduce(visual(576), keep).indices_K
    assert len(indices) == keep
    assert (indices < 0).sum() == contextual + 1


def test_targets_are_every_step_th_of_what_is_left() -> None:
    taken = torch.zeros(1, 12, dtype=torch.bool)
    taken[0, [0, 5]] = True
    real = torch.ones(1, 12, dtype=torch.bool)
    # 10 are left: 1 2 3 4 6 7 8 9 10 11; steps of 10 // 3 = 3
    assert even_targets(taken, real, 3).tolist() == [[1, 4, 8]]
    real[0, [1, 2]] = False
    # 8 are left: 3 4 6 7 8 9 10 11; steps of 8 // 3 = 2
    assert even_targets(taken, real, 3).tolist() == [[3, 6, 8]]
    assert even_targets(taken, real, 0).shape == (1, 0)


def test_a_merged_row_is_the_target_plus_the_mean_of_what_joins() -> None:
    rows = torch.tensor([[[1.0], [10.0], [20.0], [100.0], [1000.0]]])
    keys = torch.tensor([[[1.0, 0.0], [9.0, 0.1], [2.0, 0.2], [0.0, 1.0], [5.0, 5.0]]])
    views = Views(rows, keys, torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))
    merged = merge(views, torch.tensor([[4]]), torch.tensor([[0, 3]]))
    assert merged.tolist() == [[[1.0 + 15.0], [100.0]]]


def test_equal_keys_join_the_first_target() -> None:
    keys = torch.ones(1, 4, 2)
    assert nearest_targets(keys, torch.tensor([[0, 2]])).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_neither_keys_length_nor_attention_scale_matters(size: float) -> None:
    tokens = visual(36)
    assert tokens.keys_Nd is not None
    scaled = replace(tokens, keys_Nd=tokens.keys_Nd * size, cls_attention={22: tokens.cls_attention[22] * size})
    one, two = (VisionZip().reduce(each, 20).hidden_KC for each in (tokens, scaled))
    assert one is not None
    torch.testing.assert_close(one, two)


def test_tiles_follow_the_canvas_then_their_cls_rows_then_what_is_merged() -> None:
    tokens = visual(16, views=3)
    # two tiles side by side: their rows of four interleave
    index = torch.arange(16)
    slots = [index, 16 + index // 4 * 8 + index % 4, 20 + index // 4 * 8 + index % 4]
    tokens = replace(tokens, slot_N=torch.cat(slots))
    reduction = VisionZip(contextual=2).reduce(tokens, 30)
    assert tokens.cls_hidden_VC is not None
    assert reduction.hidden_KC is not None
    indices, rows = reduction.indices_K, reduction.hidden_KC
    assert (indices < 0).nonzero()[:, 0].tolist() == [0, 8, 9, *range(24, 30)]
    assert (indices[1:8] < 16).all()
    places = tokens.slot_N[indices[10:24]]
    assert torch.equal(places, places.sort().values)
    assert torch.equal(rows[0], tokens.cls_hidden_VC[0])
    assert torch.equal(rows[24:26], tokens.cls_hidden_VC[1:])
    single = indices >= 0
    assert torch.equal(rows[single], tokens.hidden_NC[indices[single]])


def test_each_view_is_chosen_and_merged_alone() -> None:
    tokens = visual(16, views=3)
    assert tokens.cls_hidden_VC is not None
    assert tokens.keys_Nd is not None
    together = VisionZip().reduce(tokens, 24)
    for view in range(3):
        part = slice(16 * view, 16 * view + 16)
        alone = VisionZip().reduce(
            replace(
                visual(16),
                hidden_NC=tokens.hidden_NC[part],
                cls_hidden_VC=tokens.cls_hidden_VC[view : view + 1],
                cls_attention={22: tokens.cls_attention[22][:, part]},
                keys_Nd=tokens.keys_Nd[part],
            ),
            8,
        )
        kept = together.indices_K[together.indices_K // 16 == view] - 16 * view
        assert kept.tolist() == alone.indices_K[alone.indices_K >= 0].tolist()


@pytest.mark.parametrize("keep", [1, 2, 3, 5, 8, 30, 47, 48])
@pytest.mark.parametrize("num_read", [0, 3, 20, 48])
@pytest.mark.parametrize("parity", [True, False])
def test_each_token_at_most_once_and_padding_last(keep: int, num_read: int, parity: bool) -> None:
    draw = torch.randperm(48, generator=torch.Generator().manual_seed(keep))
    read = torch.zeros(48, dtype=torch.bool)
    read[draw[:num_read]] = True
    tokens = visual(16, views=3, read=read)
    for method in (VisionZip(parity=parity), VisionZip(parity=parity, contextual=0)):
        reduction = method.reduce(tokens, keep)
        assert reduction.hidden_KC is not None
        assert len(reduction.indices_K) == len(reduction.hidden_KC) <= keep
        assert reduction.hidden_KC.isfinite().all()
        single = reduction.indices_K[reduction.indices_K >= 0]
        assert len(single) == len(single.unique())


def test_padding_takes_no_part_unless_parity() -> None:
    read = torch.arange(36) % 6 < 4
    tokens = visual(36, read=read)
    attention = tokens.cls_attention[22].clone()
    attention[:, ~read] += 1.0
    hidden = tokens.hidden_NC.masked_fill(~read[:, None], 1e6)
    tokens = replace(tokens, cls_attention={22: attention}, hidden_NC=hidden)
    kept, parity = (VisionZip(parity=each).reduce(tokens, 16) for each in (False, True))
    assert read[kept.indices_K[kept.indices_K >= 0]].all()
    assert kept.hidden_KC is not None
    assert kept.hidden_KC.abs().max() < 100
    assert parity.hidden_KC is not None
    dominant = slice(1, 14)
    assert (parity.indices_K[dominant] < 0).sum() == (~read).sum()  # all padding is among the 13 most attended
    assert (parity.hidden_KC[dominant] == 1e6).all(-1).sum() == (~read).sum()


def test_without_cls_a_merged_row_stands_where_its_target_stood() -> None:
    tokens = without_cls(visual(30))
    reduction = VisionZip(contextual=3).reduce(tokens, 12)
    assert reduction.indices_K.tolist() == sorted(set(reduction.indices_K.tolist()))
    assert reduction.embeds_KD is not None
    plain = (reduction.embeds_KD == tokens.embeds_ND[reduction.indices_K]).all(-1)
    assert plain.sum() == 9
    assert tokens.received_attention_N is not None
    top = tokens.received_attention_N.topk(9).indices.sort().values
    assert torch.equal(reduction.indices_K[plain], top)


@pytest.mark.parametrize("keep", [1, 2, 29, 30])
def test_without_cls_at_least_one_row_is_merged_and_none_is_lost(keep: int) -> None:
    tokens = without_cls(visual(30))
    reduction = VisionZip().reduce(tokens, keep)
    assert len(reduction.indices_K.unique()) == keep
    assert reduction.embeds_KD is not None
    if keep == 1:
        wanted = tokens.embeds_ND[0] + tokens.embeds_ND[1:].mean(0)
        torch.testing.assert_close(reduction.embeds_KD[0], wanted)
    if keep == 30:
        torch.testing.assert_close(reduction.embeds_KD, tokens.embeds_ND)


def test_half_precision_is_merged_in_float32() -> None:
    tokens = visual(64)
    assert tokens.cls_hidden_VC is not None
    hidden, cls_hidden = tokens.hidden_NC.half(), tokens.cls_hidden_VC.half()
    rows = VisionZip().reduce(replace(tokens, hidden_NC=hidden, cls_hidden_VC=cls_hidden), 16).hidden_KC
    single = replace(tokens, hidden_NC=hidden.float(), cls_hidden_VC=cls_hidden.float())
    exact = VisionZip().reduce(single, 16).hidden_KC
    assert rows is not None
    assert exact is not None
    assert rows.dtype == torch.half
    assert torch.equal(rows, exact.half())


@pytest.mark.parametrize("views", [1, 3])
def test_reduce_stays_on_the_device_and_never_waits_for_it(views: int) -> None:
    # Fake tensors carry no values: reading one (.item(), nonzero, a mask as index) or mixing devices raises.
    with FakeTensorMode():
        reduction = VisionZip().reduce(visual(36, views=views, device="cuda"), 12 * views)
        with pytest.raises(DataDependentOutputException):
            reduction.indices_K[0].item()
    assert reduction.hidden_KC is not None
    assert reduction.indices_K.device.type == reduction.hidden_KC.device.type == "cuda"
    assert reduction.hidden_KC.shape == (12 * views, 8)


@pytest.mark.gpu
def test_the_gpu_keeps_the_same_tokens() -> None:
    for path in MERGING:
        vector = load_arrays(path)
        stored = stored_views(vector)
        views = Views(*(getattr(stored, name).cuda() for name in stored.__slots__))
        dominant, targets = choose(views, int(vector["dominant"]) - 1, int(vector["contextual"]))
        rows = torch.from_numpy(vector["out_tokens"])[:, -int(vector["contextual"]) :]
        assert dominant.tolist() == vector["kept_patches"].tolist()
        torch.testing.assert_close(merge(views, dominant, targets).cpu(), rows, rtol=0.0, atol=1e-4)


def test_canvas_order_follows_the_slots() -> None:
    assert canvas_order(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0, 2, 1, 3])).tolist() == [0, 2, 1, 3]
    assert canvas_order(torch.empty(0, 2, dtype=torch.int64), torch.arange(4)).tolist() == []


def test_needs_prefer_the_cls_token() -> None:
    assert VisionZip().needs(SIGNALS | {"received_attention_N"}) == SIGNALS
    assert VisionZip().needs(frozenset({"received_attention_N", "keys_Nd"})) == {"received_attention_N", "keys_Nd"}
    with pytest.raises(UnsupportedError, match="keys"):
        VisionZip().needs(frozenset({"received_attention_N"}))
    with pytest.raises(UnsupportedError, match="positions=compact"):
        VisionZip(positions="original").needs(SIGNALS)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="contextual"):
        VisionZip(contextual=-1)
    with pytest.raises(ConfigError, match="contextual=8 merged rows do not fit in the 8 rows"):
        VisionZip(contextual=8).reduce(visual(16), 8)


def test_views_share_a_count_equally() -> None:
    tokens = visual(16, views=3)
    reduction = reduce_image(VisionZip(), tokens, Rule(BudgetRequest(keep=25)), num_read=48, max_views=5)
    assert len(reduction.indices_K) == 3 * (25 // 5)
