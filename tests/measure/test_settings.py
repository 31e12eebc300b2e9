"""A sweep over visual tokens: its steps, and the backbones that cannot be swept."""

import pytest

from dpbench.errors import ConfigError
from dpbench.measure.settings import sweep_steps


def test_a_sweep_goes_from_144_to_11520_tokens() -> None:
    assert [count * 144 for count, _ in sweep_steps("toy-llava")] == [144, 288, 576, 1152, 2304, 4608, 9216, 11520]
    llava = sweep_steps("llava-1.5")
    assert llava[0] == (1, (12, 12))
    assert [count * 576 for count, _ in llava[1:]] == [576, 1152, 2304, 4608, 9216, 11520]


def test_a_sweep_over_an_unbounded_tower_is_refused() -> None:
    with pytest.raises(ConfigError, match="vary --image-size instead"):
        sweep_steps("qwen2.5-vl")
