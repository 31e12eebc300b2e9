"""Rules without a model."""

import pytest
import torch
from dpbench_baselines.cls_attention import CLSAttention
from dpbench_baselines.trivial import Grid, Random

from dpbench.errors import UnsupportedError
from dpbench.method import VisualTokens, top_indices


def visual(num: int, *, seed: int = 0, attention: torch.Tensor | None = None) -> VisualTokens:
    index = torch.arange(num)
    return VisualTokens(
        embeds_ND=torch.zeros(num, 4),
        hidden_NC=torch.zeros(num, 4),
        view_N=torch.zeros_like(index),
        row_N=index // 12,
        col_N=index % 12,
        read_N=torch.ones(num, dtype=torch.bool),
        slot_N=index,
        cls_attention={} if attention is None else {4: attention},
        generator=torch.Generator().manual_seed(seed),
    )


def test_random_draws_every_token_equally_often() -> None:
    counts = torch.zeros(12)
    for seed in range(3000):
        counts[Random().reduce(visual(12, seed=seed), 3).indices_K] += 1
    assert counts.sum() == 9000
    # 3000 draws at probability 1/4: standard deviation 23.7; five of them either side
    assert (counts - 750).abs().max() < 5 * 23.7


def test_random_follows_its_generator() -> None:
    first, second = (Random().reduce(visual(144, seed=s), 16).indices_K for s in (1, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, Random().reduce(visual(144, seed=2), 16).indices_K)


@pytest.mark.parametrize(
    ("num", "keep", "wanted"),
    [(9, 3, [1, 4, 7]), (144, 144, list(range(144))), (10, 1, [5]), (8, 4, [1, 3, 5, 7]), (7, 2, [1, 5])],
)
def test_grid_takes_the_middle_of_equal_runs(num: int, keep: int, wanted: list[int]) -> None:
    assert Grid().reduce(visual(num), keep).indices_K.tolist() == wanted


def test_cls_attention_keeps_the_highest_head_means_in_raster_order() -> None:
    attention = torch.tensor([[0.1, 0.5, 0.0, 0.3], [0.3, 0.1, 0.0, 0.4]])
    reduction = CLSAttention().reduce(visual(4, attention=attention), 2)
    assert reduction.indices_K.tolist() == [1, 3]
    assert reduction.scores_N is not None
    torch.testing.assert_close(reduction.scores_N, torch.tensor([0.2, 0.3, 0.0, 0.35]))


def test_cls_attention_refuses_a_tower_without_cls() -> None:
    with pytest.raises(UnsupportedError, match="CLS token"):
        CLSAttention().needs(frozenset({"keys_Nd"}))


def test_ties_go_to_the_earlier_token() -> None:
    assert top_indices(torch.tensor([1.0, 2.0, 1.0, 1.0]), 3).tolist() == [0, 1, 2]
