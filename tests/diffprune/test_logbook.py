"""What the bar of a training says: the deployed loss first, and no speed of 0."""

import math

import pytest

from dpbench.diffprune.logbook import format_numbers

ROW = {"loss": 6.6, "tau": 0.0123, "mass_on_top_k": 0.9}


@pytest.mark.parametrize(
    ("hard", "speed", "expected"),
    [
        (10.87, 0.35, "deployed 10.870 train 6.600 tau 0.012 0.3 img/s"),
        (0.5, 123.4, "deployed 0.500 train 6.600 tau 0.012 123 img/s"),
        (math.nan, 9.96, "deployed - train 6.600 tau 0.012 10.0 img/s"),
    ],
)
def test_the_bar_shows_the_deployed_loss_before_the_training_loss(hard: float, speed: float, expected: str) -> None:
    assert format_numbers(ROW, hard, speed) == expected
