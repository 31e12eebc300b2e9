"""A requested budget: what is refused, how many tokens it keeps, and its label."""

import pytest

from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.errors import ConfigError


@pytest.mark.parametrize(
    ("num_visual", "request_", "count"),
    [
        (576, BudgetRequest(keep=64), 64),
        (576, BudgetRequest(keep=600), 576),
        (576, EVERYTHING, 576),
        (576, BudgetRequest(prune_rate=0.0), 576),
        (576, BudgetRequest(prune_rate=0.889), 64),
        (576, BudgetRequest(prune_rate=0.778), 128),
        (576, BudgetRequest(prune_rate=0.667), 192),
        (25, BudgetRequest(prune_rate=0.5), 12),
        (27, BudgetRequest(prune_rate=0.5), 14),
        (3, BudgetRequest(prune_rate=0.99), 1),
    ],
)
def test_a_rate_keeps_the_rounded_rest_and_at_least_one(num_visual: int, request_: BudgetRequest, count: int) -> None:
    assert request_.count(num_visual) == count


@pytest.mark.parametrize(
    ("keep", "prune_rate", "sentence"),
    [
        (0, None, "--keep: must be at least 1, got 0"),
        (-1, None, "--keep: must be at least 1, got -1"),
        (None, 1.0, "--prune-rate: must be at least 0 and below 1, got 1.0"),
        (None, -0.5, "--prune-rate: must be at least 0 and below 1, got -0.5"),
        (None, float("nan"), "--prune-rate: must be at least 0 and below 1, got nan"),
        (16, 0.5, "--keep and --prune-rate both set the budget; give one of them"),
    ],
)
def test_a_wrong_budget_is_one_sentence(keep: int | None, prune_rate: float | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BudgetRequest(keep, prune_rate)
    assert str(caught.value) == sentence


def test_a_view_gets_an_equal_part_of_a_count_and_the_same_rate() -> None:
    assert BudgetRequest(keep=64).per_view(5) == BudgetRequest(keep=12)
    assert BudgetRequest(keep=3).per_view(5) == BudgetRequest(keep=1)
    assert BudgetRequest(prune_rate=0.5).per_view(5) == BudgetRequest(prune_rate=0.5)


def test_labels_are_those_of_the_tables() -> None:
    assert [budget.label for budget in (BudgetRequest(64), BudgetRequest(None, 0.889), EVERYTHING)] == [
        "64",
        "-88.9%",
        "all",
    ]
