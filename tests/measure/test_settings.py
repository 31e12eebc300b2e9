"""What a profile is asked for: lists, sizes, budgets, and one sentence for each thing that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from dpbench.errors import ConfigError
from dpbench.measure import settings
from dpbench.measure.settings import image_size, numbers, steps

NOTHING: dict[str, Any] = {
    **dict.fromkeys(("manifest", "method", "param", "backbone", "weights", "revision", "quantize", "device_map")),
    **dict.fromkeys(("keep", "prune_rate", "budget_kind", "dtype", "attention", "prompt", "anyres", "newline")),
    **dict.fromkeys(("min_pixels", "max_pixels", "batch_size", "image_size", "seconds", "sweep", "repetitions")),
    "device": "cpu",
    "text_tokens": 66,
    "warmups": 5,
    "answers": 3,
    "compiled": False,
    "cuda_graph": False,
    "flops_only": False,
    "out": Path("results"),
}


def test_nothing_given_is_the_embedded_backbone_all_methods_and_sixteen_tokens_for_two_seconds() -> None:
    wanted, how = settings.requested(NOTHING)
    assert wanted.backbone.name == "toy-llava"
    assert wanted.methods[0].name == "none"
    assert {"fastv", "diffprune", "holov"} < {each.name for each in wanted.methods}
    assert wanted.budgets is not None
    assert wanted.budgets.keep == [16]
    assert wanted.name == "profile-cpu"
    assert (how.seconds, how.repetitions, how.configurations, how.batch_sizes) == (2.0, 50, ("eager",), (1,))


def test_other_backbones_get_ten_seconds_and_lists_are_split_at_commas() -> None:
    given = NOTHING | {"backbone": "llava-1.5", "method": ["none,fastv", "holov"], "keep": ["64,128", "192"]}
    wanted, how = settings.requested(given | {"batch_size": ["1,8"], "cuda_graph": True, "compiled": True})
    assert [each.name for each in wanted.methods] == ["none", "fastv", "holov"]
    assert wanted.budgets is not None
    assert wanted.budgets.keep == [64, 128, 192]
    assert how.seconds == 10.0
    assert how.batch_sizes == (1, 8)
    assert how.configurations == ("eager", "compile", "cuda-graph")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"keep": ["16"], "prune_rate": ["0.5"]}, "--keep and --prune-rate both set the budget"),
        ({"backbone": "llava-1.5"}, "--backbone llava-1.5 needs a budget"),
        ({"keep": ["abc"]}, "--keep: 'abc' is no whole number"),
        ({"keep": ["16.5"]}, "--keep: '16.5' is no whole number"),
        ({"prune_rate": ["lots"]}, "--prune-rate: 'lots' is no number"),
        ({"batch_size": ["0"]}, "--batch-size: 0 is none"),
        ({"image_size": "336x"}, "--image-size: '336x' is no size in pixels"),
        ({"image_size": "1x2x3"}, "--image-size: '1x2x3' is no size"),
        ({"method": ["holow"]}, "did you mean 'holov'"),
        ({"param": ["layer=3"]}, "--param belongs to one method"),
        ({"manifest": Path("quickstart"), "keep": ["16"]}, "--keep describes cells and cannot be combined"),
        ({"keep": ["1000"]}, "--keep: 1000 is more than the 144 visual tokens of toy-llava"),
    ],
)
def test_what_cannot_be_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings.requested(NOTHING | given)


def test_sizes_are_height_by_width_or_a_square() -> None:
    assert image_size("672x1008") == (672, 1008)
    assert image_size("336") == (336, 336)
    assert image_size(None) is None


def test_numbers_come_in_order() -> None:
    assert numbers("--keep", ["64, 128", "192"], int) == [64, 128, 192]


def test_a_sweep_goes_from_144_to_11520_tokens() -> None:
    assert [count * 144 for count, _ in steps("toy-llava")] == [144, 288, 576, 1152, 2304, 4608, 9216, 11520]
    llava = steps("llava-1.5")
    assert llava[0] == (1, (12, 12))
    assert [count * 576 for count, _ in llava[1:]] == [576, 1152, 2304, 4608, 9216, 11520]


def test_a_sweep_over_an_unbounded_tower_is_refused() -> None:
    with pytest.raises(ConfigError, match="vary --image-size instead"):
        steps("qwen2.5-vl")
