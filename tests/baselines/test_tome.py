"""ToMe's matching before the LLM, against a loop over lists, and by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from dpbench_baselines.tome import ToMe, best_pairs, group_means, merge_alike, renumber
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import VisualTokens


def visual(num: int, *, seed: int = 0, read: Tensor | None = None, keys: bool = True) -> VisualTokens:
    draw = torch.Generator().manual_seed(seed)
    index = torch.arange(num)
    return VisualTokens(
        embeds_ND=torch.randn(num, 8, generator=draw),
        hidden_NC=torch.randn(num, 6, generator=draw),
        view_N=torch.zeros_like(index),
        row_N=index // 12,
        col_N=index % 12,
        read_N=torch.ones(num, dtype=torch.bool) if read is None else read,
        slot_N=index if read is None else torch.where(read, read.long().cumsum(0) - 1, -1),
        keys_Nd=torch.randn(num, 4, generator=draw) if keys else None,
        generator=torch.Generator(),
    )


def by_hand(metric: Tensor, keep: int) -> tuple[list[list[int]], list[int]]:
    """The definition on lists of members: a group's metric is the mean over its members."""
    groups, sizes = [[token] for token in range(len(metric))], [len(metric)]
    while len(groups) > keep:
        means = torch.stack([metric[members].mean(0) for members in groups])
        units = means / means.norm(dim=1, keepdim=True)
        odd = range(1, len(groups), 2)
        edges = []
        for even in range(0, len(groups), 2):
            partner = max(odd, key=lambda j: float(units[even] @ units[j]))
            edges.append((-float(units[even] @ units[partner]), even, partner))
        for _, even, partner in sorted(edges)[: min(len(groups) - keep, len(groups) // 2)]:
            groups[partner] = groups[partner] + groups[even]
            groups[even] = []
        groups = sorted((sorted(each) for each in groups if each), key=lambda members: members[0])
        sizes.append(len(groups))
    return groups, sizes


@pytest.mark.parametrize(("num", "keep"), [(1, 1), (2, 1), (3, 1), (9, 4), (40, 7), (41, 20), (41, 40), (64, 64)])
def test_groups_equal_the_definition(num: int, keep: int) -> None:
    for seed in range(3):
        metric = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))
        group, first = merge_alike(metric, keep)
        wanted, _ = by_hand(metric, keep)
        assert [(group == number).nonzero()[:, 0].tolist() for number in range(len(first))] == wanted
        assert first.tolist() == [members[0] for members in wanted]


def test_576_tokens_are_64_in_four_steps() -> None:
    metric = torch.randn(576, 8, generator=torch.Generator().manual_seed(0))
    assert by_hand(metric, 64)[1] == [576, 288, 144, 72, 64]
    assert len(merge_alike(metric, 64)[1]) == 64


def test_only_the_most_similar_pairs_join() -> None:
    metric = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.3, 1.0], [1.0, 0.05]])
    assert best_pairs(metric, 1).tolist() == [0, 1, 2, 3, 1]
    assert best_pairs(metric, 2).tolist() == [1, 1, 2, 3, 1]


def test_ties_go_to_the_earlier_token() -> None:
    assert best_pairs(torch.ones(6, 2), 2).tolist() == [1, 1, 1, 3, 4, 5]


def test_groups_are_numbered_by_their_first_token() -> None:
    number, first = renumber(torch.tensor([3, 1, 2, 3, 1]), 3)
    assert number.tolist() == [0, 1, 2, 0, 1]
    assert first.tolist() == [0, 1, 2]
    number, first = renumber(torch.tensor([0, 1, 3, 3]), 3)
    assert number.tolist() == [0, 1, 2, 2]
    assert first.tolist() == [0, 1, 2]


def test_a_group_is_the_mean_of_its_tokens_in_their_own_type() -> None:
    rows = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.half)
    means = group_means(rows, torch.tensor([0, 1, 0]), 2)
    assert means.dtype == torch.half
    assert means.tolist() == [[3.5], [2.0]]


@pytest.mark.parametrize("metric", ["key", "token", None])
@pytest.mark.parametrize("keep", [1, 5, 16, 35, 36])
def test_rows_are_means_and_stand_where_their_first_token_stood(metric: Any, keep: int) -> None:
    tokens = visual(36)
    reduction = ToMe(metric=metric).reduce(tokens, keep)
    read = tokens.embeds_ND if metric == "token" else tokens.keys_Nd
    rows = reduction.embeds_KD if metric == "token" else reduction.hidden_KC
    values = tokens.embeds_ND if metric == "token" else tokens.hidden_NC
    assert read is not None
    assert rows is not None
    groups, _ = by_hand(read, keep)
    assert reduction.indices_K.tolist() == [members[0] for members in groups]
    torch.testing.assert_close(rows, torch.stack([values[members].mean(0) for members in groups]))


def test_everything_kept_is_the_identity() -> None:
    tokens = visual(30)
    reduction = ToMe().reduce(tokens, 30)
    assert torch.equal(reduction.indices_K, torch.arange(30))
    assert reduction.hidden_KC is not None
    torch.testing.assert_close(reduction.hidden_KC, tokens.hidden_NC)


@pytest.mark.parametrize("num_read", [0, 1, 10, 24])
def test_padding_takes_no_part(num_read: int) -> None:
    read = torch.zeros(36, dtype=torch.bool)
    read[torch.randperm(36, generator=torch.Generator().manual_seed(1))[:num_read]] = True
    tokens = visual(36, read=read)
    tokens = replace(tokens, hidden_NC=tokens.hidden_NC.masked_fill(~read[:, None], torch.nan))
    reduction = ToMe().reduce(tokens, 9)
    assert len(reduction.indices_K) == min(9, num_read)
    assert read[reduction.indices_K].all()
    assert reduction.hidden_KC is not None
    assert reduction.hidden_KC.isfinite().all()


def test_without_keys_the_tokens_are_compared() -> None:
    one, two = ToMe().reduce(visual(36, keys=False), 9), ToMe(metric="token").reduce(visual(36), 9)
    assert torch.equal(one.indices_K, two.indices_K)
    assert one.hidden_KC is None


def test_half_precision_is_merged_in_float32() -> None:
    tokens = visual(36)
    half = replace(tokens, hidden_NC=tokens.hidden_NC.half())
    rows = ToMe().reduce(half, 9).hidden_KC
    exact = ToMe().reduce(replace(tokens, hidden_NC=half.hidden_NC.float()), 9).hidden_KC
    assert rows is not None
    assert exact is not None
    assert torch.equal(rows, exact.half())


def test_positions_may_stay_original() -> None:
    assert (ToMe(positions="original").reduce(visual(36), 9).indices_K >= 0).all()


def test_needs() -> None:
    assert ToMe().needs(frozenset({"keys_Nd", "cls_attention"})) == {"keys_Nd"}
    assert ToMe().needs(frozenset({"received_attention_N"})) == frozenset()
    assert ToMe(metric="token").needs(frozenset({"keys_Nd"})) == frozenset()
    with pytest.raises(UnsupportedError, match="keys"):
        ToMe(metric="key").needs(frozenset({"received_attention_N"}))


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="metric"):
        ToMe(metric="keys")  # type: ignore[arg-type]
