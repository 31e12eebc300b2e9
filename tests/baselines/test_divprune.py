"""DivPrune against vectors made by the official code, against a slow greedy loop, and by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dpbench_baselines import divprune
from dpbench_baselines.divprune import DivPrune, cosine_distances, most_diverse
from golden_vectors import find_vectors, load_arrays
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors import run
from dpbench.engine.decision import Rule, reduce_image
from dpbench.errors import ConfigError
from dpbench.method import VisualTokens

GOLDENS = find_vectors("divprune")
golden = pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)


def visual(embeds: Tensor, *, read: Tensor | None = None) -> VisualTokens:
    index = torch.arange(len(embeds), device=embeds.device)
    return VisualTokens(
        embeds_ND=embeds,
        hidden_NC=embeds,
        view_N=torch.zeros_like(index),
        row_N=index // 24,
        col_N=index % 24,
        read_N=torch.ones_like(index, dtype=torch.bool) if read is None else read,
        slot_N=index if read is None else torch.where(read, read.long().cumsum(0) - 1, -1),
        generator=torch.Generator(),
    )


def noise(num: int, *, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def all_real(num: int) -> Tensor:
    return torch.ones(num, dtype=torch.bool)


def test_the_vectors_are_there() -> None:
    assert len(GOLDENS) == 5


@golden
def test_the_picks_equal_upstreams_in_order(path: Path) -> None:
    vector = load_arrays(path)
    distances = cosine_distances(torch.from_numpy(vector["features"]))
    picks = most_diverse(distances, all_real(len(distances)), int(vector["n_keep"]))
    assert picks.tolist() == vector["selected"].tolist()


@golden
def test_reduce_equals_upstream(path: Path) -> None:
    vector = load_arrays(path)
    tokens = visual(torch.from_numpy(vector["features"]))
    by_ratio = DivPrune(keep_ratio=float(vector["keep_ratio"])).reduce(tokens, 1)
    by_count = DivPrune().reduce(tokens, int(vector["n_keep"]))
    assert by_ratio.indices_K.tolist() == by_count.indices_K.tolist() == vector["kept_sorted"].tolist()


@golden
def test_vectors_pass_through_the_contract(path: Path) -> None:
    done = run.check(DivPrune(), path)
    assert done.passed, done.detail


@pytest.mark.parametrize("name", ["features", "keep_ratio", "n_keep", "selected", "kept_sorted"])
def test_a_vector_with_other_content_fails(name: str, tmp_path: Path) -> None:
    arrays = load_arrays(GOLDENS[0])
    changed = arrays[name] * 1.5 if arrays[name].ndim == 0 else np.roll(arrays[name], 1, 0)
    if name in ("n_keep", "selected"):
        changed = arrays[name] + 1
    np.savez(tmp_path / "vector.npz", **arrays | {name: changed})
    assert not run.check(DivPrune(), tmp_path / "vector.npz").passed


def greedy(distances: Tensor, keep: int) -> list[int]:
    """Max-min diversity as it is written down: every distance to every pick, in every step."""
    others = range(len(distances))
    picks = [max(others, key=lambda j: min(float(distances[i, j]) for i in others if i != j))]
    while len(picks) < keep:
        left = [j for j in others if j not in picks]
        picks.append(max(left, key=lambda j: min(float(distances[i, j]) for i in picks)))
    return picks


@pytest.mark.parametrize(("num", "keep"), [(2, 1), (2, 2), (9, 4), (30, 30), (40, 13)])
def test_the_running_minimum_picks_what_all_distances_pick(num: int, keep: int) -> None:
    for seed in range(4):
        distances = cosine_distances(noise(num, seed=seed))
        assert most_diverse(distances, all_real(num), keep).tolist() == greedy(distances, keep)


def test_on_a_circle_picks_are_the_loneliest_and_then_the_furthest_from_all() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 95.0, 180.0, 188.0]))
    distances = cosine_distances(torch.stack([angles.cos(), angles.sin()], 1))
    assert most_diverse(distances, all_real(5), 3).tolist() == [2, 0, 4]


@pytest.mark.parametrize("panel", [1, 7, 20, 64])
def test_panels_do_not_change_the_distances(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = noise(20).double()
    units = embeds / embeds.norm(dim=1, keepdim=True)
    monkeypatch.setattr(divprune, "PANEL", panel)
    distances = cosine_distances(embeds)
    torch.testing.assert_close(distances.double(), 1 - units @ units.T, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(distances, distances.T, rtol=0.0, atol=1e-6)


def test_length_does_not_matter_and_no_length_is_far_from_all() -> None:
    embeds = noise(12)
    scaled = embeds * torch.linspace(0.1, 50, 12)[:, None]
    torch.testing.assert_close(cosine_distances(embeds), cosine_distances(scaled))
    embeds[3] = 0.0
    distances = cosine_distances(embeds)
    assert torch.equal(distances[3], torch.ones(12))
    assert most_diverse(distances, all_real(12), 12).sort().values.tolist() == list(range(12))


def test_picking_leaves_the_distances_as_they_are() -> None:
    distances = cosine_distances(noise(12))
    before = distances.clone()
    most_diverse(distances, torch.arange(12) < 9, 12)
    assert torch.equal(distances, before)


@pytest.mark.parametrize("keep", [1, 5, 20])
def test_equal_tokens_are_each_picked_once(keep: int) -> None:
    picks = DivPrune().reduce(visual(torch.ones(20, 4)), keep).indices_K
    assert len(picks.unique()) == keep


@pytest.mark.parametrize("keep", [1, 10, 24, 30, 36])
def test_padding_is_neither_picked_nor_measured(keep: int) -> None:
    embeds, read = noise(36), torch.arange(36) % 6 < 4
    picks = DivPrune().reduce(visual(embeds, read=read), keep).indices_K
    assert len(picks.unique()) == keep
    alone = DivPrune().reduce(visual(embeds[read]), min(keep, 24)).indices_K
    assert picks[read[picks]].tolist() == torch.arange(36)[read][alone].tolist()


def test_padding_next_to_a_token_does_not_make_it_less_lonely() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 95.0, 180.0, 188.0, 95.0]))
    distances = cosine_distances(torch.stack([angles.cos(), angles.sin()], 1))
    assert most_diverse(distances, torch.arange(6) < 5, 6).tolist() == [2, 0, 4, 1, 3, 5]


def test_picks_are_in_reading_order() -> None:
    tokens = visual(noise(24))
    turned = replace(tokens, slot_N=tokens.slot_N.flip(0))
    one, two = (DivPrune().reduce(each, 9).indices_K for each in (tokens, turned))
    assert one.tolist() == two.flip(0).tolist() == sorted(one.tolist())


@pytest.mark.parametrize(
    ("num", "ratio", "count"), [(576, 0.098, 56), (576, 0.0390625, 22), (10, 0.01, 1), (7, 1.0, 7)]
)
def test_a_ratio_rounds_half_to_even_whatever_the_budget(num: int, ratio: float, count: int) -> None:
    method = DivPrune(keep_ratio=ratio)
    assert method.spends == "own"
    assert len(method.reduce(visual(noise(num)), 3).indices_K) == count


def test_all_views_share_one_budget() -> None:
    tokens = replace(visual(noise(48)), view_N=torch.arange(48) // 16)
    reduction = reduce_image(DivPrune(), tokens, Rule(BudgetRequest(keep=20)), num_read=48, max_views=5)
    assert torch.equal(reduction.indices_K, DivPrune().reduce(tokens, 20).indices_K)


def test_half_precision_is_compared_in_float32() -> None:
    embeds = noise(60, width=64).half()
    half, single = (DivPrune().reduce(visual(each), 20).indices_K for each in (embeds, embeds.float()))
    assert torch.equal(half, single)


def test_reduce_stays_on_the_device_and_never_waits_for_it() -> None:
    # Fake tensors carry no values: reading one (.item(), nonzero, a mask as index) or mixing devices raises.
    with FakeTensorMode():
        embeds = torch.empty(150, 8, device="cuda", dtype=torch.half)
        reduction = DivPrune().reduce(visual(embeds), 40)
        with pytest.raises(DataDependentOutputException):
            reduction.indices_K[0].item()
    assert reduction.indices_K.device.type == "cuda"
    assert reduction.indices_K.shape == (40,)


@pytest.mark.gpu
def test_the_gpu_makes_the_same_picks() -> None:
    for path in GOLDENS:
        vector = load_arrays(path)
        distances = cosine_distances(torch.from_numpy(vector["features"]).cuda())
        picks = most_diverse(distances, all_real(len(distances)).cuda(), int(vector["n_keep"]))
        assert picks.tolist() == vector["selected"].tolist()


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_bad_parameters_are_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="keep_ratio"):
        DivPrune(keep_ratio=ratio)
