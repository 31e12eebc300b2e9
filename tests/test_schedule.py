"""Where cuts go and what they leave: by hand, and within one token of any budget."""

import pytest

from dpbench.errors import ConfigError
from dpbench.method import Budget
from dpbench.schedule import scaled_layers, solve_keeps


def test_layers_keep_their_depth_and_stay_apart() -> None:
    assert scaled_layers("it", (2, 8, 16), 32) == (2, 8, 16)
    assert scaled_layers("it", (2, 8, 16), 40) == (2, 10, 20)
    assert scaled_layers("it", (2, 3, 16), 8) == (1, 2, 4)
    with pytest.raises(ConfigError, match=r"it: 3 layers are too few for cuts at \[2, 8, 16\] of 32"):
        scaled_layers("it", (2, 8, 16), 3)


def test_one_multiple_of_the_shares_meets_the_mean_by_hand() -> None:
    """2 layers read 100, 3 read 50 s, 5 read 25 s: 400 in all at s = 200 / 275."""
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(40)) == (36, 18)


def test_no_cut_leaves_more_than_everything() -> None:
    """At a mean of 80 the first cut would leave 109; with 100 there, 5 layers read 300 of the 800."""
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(80)) == (100, 60)
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(100)) == (100, 100)
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(300)) == (100, 100)


def test_a_final_budget_is_what_the_last_cut_leaves() -> None:
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(30, "final")) == (60, 30)
    assert solve_keeps("it", 100, 10, {2: 0.5, 5: 0.25}, Budget(70, "final")) == (100, 70)


@pytest.mark.parametrize("shape", [{1: 1.0}, {2: 0.6, 4: 0.3, 9: 0.01}, {1: 0.5, 2: 0.5}])
def test_the_mean_is_within_one_token_wherever_it_is_in_reach(shape: dict[int, float]) -> None:
    first = next(iter(shape))
    for num in (1, 17, 144, 576):
        for count in range(-(-first * num // 12), num + 1, max(1, num // 20)):
            keeps = solve_keeps("it", num, 12, shape, Budget(count))
            layers = [*shape, 12]
            total = first * num + sum(k * (b - a) for k, a, b in zip(keeps, layers, layers[1:], strict=False))
            assert 0 <= count - total / 12 + 1e-6 < 1 + 1e-6
    with pytest.raises(ConfigError, match=f"it: cannot reach a mean of 0 of 144 .* between {first * 12} and 144"):
        solve_keeps("it", 144, 12, shape, Budget(0))
