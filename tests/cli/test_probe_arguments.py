"""What the flags of a probe become."""

from pathlib import Path
from typing import Any

import pytest

from dpbench.cli.probe_arguments import build_recipe, build_settings, probe_folder
from dpbench.errors import ConfigError


def test_lists_are_read_with_commas_and_parameters_go_where_they_are_known() -> None:
    flags = {"keep": "16,0.5", "tau": "0.15,1", "variant": "diffprune, scale-gate", "seed": 3, "backbone": "toy-llava"}
    settings, rest = build_settings("coherence", flags, ["batches=5", "hidden=16", "sources=[data]"])
    assert (settings.keep, settings.tau, settings.ways) == ((16, 0.5), (0.15, 1.0), ("diffprune", "scale-gate"))
    assert (settings.seed, settings.batches, settings.model_dump()["sources"]) == (3, 5, ("data",))
    recipe = build_recipe(flags, rest)
    assert (recipe.backbone, recipe.hidden, recipe.seed) == ("toy-llava", 16, 3)


@pytest.mark.parametrize(
    ("flags", "params", "message"),
    [
        ({"tau": "x"}, [], "--tau: 'x' is not a list of numbers; give for example 16,48"),
        ({"tau": "0"}, [], "coherence: tau: every temperature must be above 0"),
        ({}, ["batch=3"], "--param: coherence has no setting 'batch'; did you mean 'batches'"),
        ({}, ["batches=2"], "coherence: batches: Input should be greater than or equal to 3"),
        ({"keep": ""}, [], "coherence: keep: Tuple should have at least 1 item"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(flags: dict[str, Any], params: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings("coherence", flags, params)


def test_records_are_in_a_folder_named_after_the_backbone() -> None:
    assert probe_folder({"backbone": "llava-1.5"}, None) == Path("results/probe-llava-1.5")
    assert probe_folder({}, Path("here")) == Path("here")
