"""Noise against removal: forms that must agree do, and accuracies are of the right tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_training import small_recipe

from dpbench.errors import ConfigError
from dpbench.probe import noise, runner
from dpbench.probe.projector_site import ProjectorSite, open_projector_site
from dpbench.probe.settings import NoiseSettings

SMALL: dict[str, Any] = {"keep": (0.5,), "batches": 2, "batch_size": 2, "held_out": 2, "tau": (0.15,)}


@pytest.fixture(scope="module")
def site() -> ProjectorSite:
    return open_projector_site(small_recipe(num_validation=4), device="cpu", console=Console(quiet=True))


def measured(site: ProjectorSite, form: str, keep: float | None, scores: str | None = "random", tau: Any = None) -> Any:
    setting = {"form": form, "keep": keep, "scores": scores, "tau": tau}
    return noise.measure(site, setting, NoiseSettings(**SMALL), 0.2)


def test_the_unpruned_model_predicts_its_captions(site: ProjectorSite) -> None:
    found = measured(site, "unpruned", None, None)
    assert min(found["top1"]) > 0.9
    assert found["top5"] == (1.0, 1.0)
    for number, loss in enumerate(found["losses"]):
        batch = site.load_batch(number, 2, held_out=True)
        assert loss == pytest.approx(float(site.objective.full_losses(batch).mean()))


@pytest.mark.parametrize("form", ["removal", "mask", "soft"])
def test_with_every_token_kept_all_forms_are_the_unpruned_model(site: ProjectorSite, form: str) -> None:
    wanted = measured(site, "unpruned", None, None)
    assert measured(site, form, 144, tau=0.15)["losses"] == pytest.approx(wanted["losses"], rel=0.02)


def test_soft_weights_at_a_temperature_of_nothing_are_a_mask(site: ProjectorSite) -> None:
    mask, soft = measured(site, "mask", 0.5), measured(site, "soft", 0.5, tau=1e-6)
    assert soft["losses"] == pytest.approx(mask["losses"], rel=1e-3)
    assert measured(site, "soft", 0.5, tau=1.5)["losses"] != pytest.approx(mask["losses"], rel=1e-2)


def test_removal_under_the_scorers_scores_is_the_deployed_loss(site: ProjectorSite) -> None:
    found = measured(site, "removal", 16, "scorer")["losses"]
    batches = [site.load_batch(number, 2, held_out=True) for number in range(2)]
    assert found == pytest.approx([float(site.objective.hard_losses(batch, 16).mean()) for batch in batches])
    assert found != pytest.approx(measured(site, "removal", 16, "random")["losses"])


def test_accuracy_counts_ranks(monkeypatch: pytest.MonkeyPatch, site: ProjectorSite) -> None:
    predicted = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4]])
    monkeypatch.setattr(ProjectorSite, "predict", lambda *_: (predicted, torch.tensor([0, 1, 4, 5])))
    found = measured(site, "unpruned", None, None)
    assert (found["top1"], found["top5"]) == ((0.25, 0.25), (0.75, 0.75))


def test_every_form_is_measured_once_and_only_soft_ones_at_every_temperature(
    site: ProjectorSite, tmp_path: Path
) -> None:
    settings = NoiseSettings(**{**SMALL, "tau": (0.15, 1.5), "scores": ("random",)})
    lines = runner.probe(noise.NOISE, site, settings, tmp_path, device="cpu", console=Console(quiet=True))
    assert [(line.setting["form"], line.setting["tau"]) for line in lines] == [
        ("unpruned", None),
        ("removal", None),
        ("mask", None),
        ("soft", 0.15),
        ("soft", 1.5),
    ]


@pytest.mark.parametrize("keep", [1.5, 0.0, 145, 0])
def test_a_budget_is_a_count_or_a_share(site: ProjectorSite, tmp_path: Path, keep: float) -> None:
    settings = NoiseSettings(**{**SMALL, "keep": (keep,)})
    with pytest.raises(
        ConfigError, match=f"--keep: {keep} of the tokens of toy-llava cannot be kept; give 1 to 144, or"
    ):
        runner.probe(noise.NOISE, site, settings, tmp_path, device="cpu", console=Console(quiet=True))
