"""The scorer behind the projector: a probe's losses are those of the training."""

import pytest
import torch
from rich.console import Console
from small_training import small_recipe

from dpbench.diffprune.objective import Objective
from dpbench.probe.projector_site import ProjectorSite, open_projector_site
from dpbench.probe.settings import find_way
from dpbench.probe.site import deployed_loss, draw_gate, throttled_loss


@pytest.fixture(scope="module")
def site() -> ProjectorSite:
    return open_projector_site(small_recipe(num_validation=4), device="cpu", console=Console(quiet=True))


@pytest.mark.parametrize("way", ["diffprune", "gumbel-ste", "gumbel-ste-mean", "identity-ste-noise", "scale-gate"])
def test_the_throttled_loss_is_that_of_a_training_before_its_denoiser_moves(site: ProjectorSite, way: str) -> None:
    batch, mine, chosen = site.load_batch(0, 2), site.objective, find_way(way)
    objective = Objective(mine.backbone, mine.scorer, mine.denoiser, chosen.variant, mine.instruction, chosen.fill)
    gate = draw_gate(site, batch, chosen, 16, 0.03, noise=5)
    with torch.no_grad():
        wanted = objective.soft_losses(objective.logits(batch), batch, gate).mean()
        assert throttled_loss(site, batch, chosen, keep=16, tau=0.03, noise=5) == pytest.approx(float(wanted))


def test_the_deployed_loss_is_the_validations(site: ProjectorSite) -> None:
    batch = site.load_batch(1, 2, held_out=True)
    assert deployed_loss(site, batch, keep=16) == pytest.approx(float(site.objective.hard_losses(batch, 16).mean()))
    assert deployed_loss(site, batch, keep=144) == pytest.approx(float(site.objective.full_losses(batch).mean()))


def test_images_to_train_on_and_held_out_ones_are_apart(site: ProjectorSite) -> None:
    training, held_out = site.load_batch(0, 2), site.load_batch(0, 2, held_out=True)
    assert not torch.equal(training.embeds[0], held_out.embeds[0])
    assert site.load_batch(0, 2) is training
