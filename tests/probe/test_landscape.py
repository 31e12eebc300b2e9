"""The loss along random directions: how a direction is made, and that nothing else changes along it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_training import small_recipe

from dpbench.probe import landscape, runner
from dpbench.probe.gradients import moved
from dpbench.probe.projector_site import ProjectorSite, open_projector_site
from dpbench.probe.settings import LandscapeSettings, find_way
from dpbench.probe.site import throttled_loss

SMALL: dict[str, Any] = {
    "ways": ("diffprune", "gumbel-ste"),
    "keep": (16,),
    "batch_size": 2,
    "held_out": 2,
    "points": 5,
    "directions": 2,
    "ranges": (0.5,),
}


@pytest.fixture(scope="module")
def site() -> ProjectorSite:
    return open_projector_site(small_recipe(num_validation=4), device="cpu", console=Console(quiet=True))


def test_a_direction_is_as_long_as_the_weights_row_by_row_and_leaves_vectors_alone(site: ProjectorSite) -> None:
    direction = landscape.draw_direction(site.scorer, 0, 3)
    parameters = list(site.scorer.parameters())
    for weights, part in zip(parameters, direction.split([p.numel() for p in parameters]), strict=True):
        if weights.ndim < 2:
            assert (part == 0).all()
        else:
            lengths = part.view_as(weights).norm(dim=1)
            torch.testing.assert_close(lengths.float(), weights.detach().norm(dim=1))
    assert torch.equal(direction, landscape.draw_direction(site.scorer, 0, 3))
    assert not torch.equal(direction, landscape.draw_direction(site.scorer, 0, 4))


def test_a_line_is_the_loss_with_the_scorer_moved_and_the_same_noise(site: ProjectorSite) -> None:
    settings = LandscapeSettings(**SMALL)
    setting = {"way": "diffprune", "keep": 16, "tau": 0.15, "range": 0.5, "line": 1}
    losses = landscape.measure(site, setting, settings, 0.2)["losses"]
    direction = landscape.draw_direction(site.scorer, 0, 1)
    assert len(losses) == 5
    for share, loss in zip((-0.5, -0.25, 0.0, 0.25, 0.5), losses, strict=True):
        with moved(site.scorer, share * direction), torch.no_grad():
            again = throttled_loss(site, site.load_batch(0, 2), find_way("diffprune"), keep=16, tau=0.03, noise=0)
        assert loss == float(again)
    assert len(set(losses)) == 5


def test_the_middle_row_of_a_map_is_its_first_line(site: ProjectorSite) -> None:
    settings = LandscapeSettings(**SMALL, map_points=5)
    setting = {"way": "gumbel-ste", "keep": 16, "tau": 0.15, "range": 0.5}
    row = landscape.measure(site, {**setting, "map_row": 2}, settings, 0.2)
    assert row == landscape.measure(site, {**setting, "line": 0}, settings, 0.2)
    assert row != landscape.measure(site, {**setting, "map_row": 3}, settings, 0.2)


def test_more_directions_and_a_map_are_added_to_what_is_there(site: ProjectorSite, tmp_path: Path) -> None:
    def probe(**changes: Any) -> list[dict[str, Any]]:
        settings = LandscapeSettings(**{**SMALL, "ways": ("diffprune",), **changes})
        quiet = Console(quiet=True)
        lines = runner.probe(landscape.LANDSCAPE, site, settings, tmp_path, device="cpu", console=quiet)
        return [{**line.setting, "finished": line.finished, "seconds": line.seconds} for line in lines]

    first = probe()
    assert [line["line"] for line in first] == [0, 1]
    more = probe(directions=3, map_points=5)
    assert more[:2] == first
    assert [line.get("line", line.get("map_row")) for line in more] == [0, 1, 2, 0, 1, 2, 3, 4]
