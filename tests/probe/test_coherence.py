"""Gradient coherence on the embedded backbone: raw values, resuming, and the step along the mean gradient."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_training import small_recipe, train_small

from dpbench.errors import ConfigError
from dpbench.probe import coherence, runner
from dpbench.probe.gradients import flat_gradient, moved, weights_norm
from dpbench.probe.projector_site import ProjectorSite, open_projector_site
from dpbench.probe.settings import CoherenceSettings, find_way
from dpbench.probe.site import deployed_loss, throttled_loss
from dpbench.probe.statistics import unpack
from dpbench.storage import record
from dpbench.storage.record import Probe

SMALL: dict[str, Any] = {
    "ways": ("diffprune", "gumbel-ste"),
    "keep": (16,),
    "tau": (0.15,),
    "batches": 3,
    "batch_size": 2,
    "held_out": 2,
    "step_sizes": (0.05,),
}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def site() -> ProjectorSite:
    return open_projector_site(small_recipe(num_validation=4), device="cpu", console=QUIET)


def measured(site: ProjectorSite, way: str, sources: str, **changes: Any) -> dict[str, Any]:
    setting = {"way": way, "keep": 16, "tau": 0.15, "sources": sources}
    return coherence.measure(site, setting, CoherenceSettings(**{**SMALL, **changes}), 0.2)


def test_the_gram_matrix_is_that_of_the_gradients_that_autograd_gives(site: ProjectorSite) -> None:
    gram = unpack(measured(site, "diffprune", "both")["gram"])
    gradients = []
    for number in range(3):
        loss = throttled_loss(site, site.load_batch(number, 2), find_way("diffprune"), keep=16, tau=0.03, noise=number)
        site.scorer.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in site.scorer.parameters()]))
    wanted = torch.stack(gradients)
    np.testing.assert_allclose(gram, (wanted @ wanted.T).numpy(), rtol=1e-6)


@pytest.mark.parametrize(("sources", "equal"), [("both", False), ("data", False), ("noise", False)])
def test_batches_differ_in_what_the_sources_say(site: ProjectorSite, sources: str, equal: bool) -> None:
    """The scale gate reads no noise: with the data fixed its gradients are all the same."""
    gram = unpack(measured(site, "scale-gate", sources)["gram"])
    assert np.allclose(gram, gram[0, 0]) is (sources == "noise")
    assert not np.allclose(unpack(measured(site, "diffprune", sources)["gram"]), gram[0, 0])


def test_a_step_of_nothing_is_the_deployed_loss_and_weights_come_back(site: ProjectorSite) -> None:
    before = torch.cat([p.detach().flatten().clone() for p in site.scorer.parameters()])
    after_step = measured(site, "diffprune", "both")["after_step"]
    batches = [site.load_batch(number, 2, held_out=True) for number in range(2)]
    assert after_step[:2] == tuple(deployed_loss(site, batch, keep=16) for batch in batches)
    assert after_step[2:] != after_step[:2]
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in site.scorer.parameters()]))


def test_a_step_is_as_long_as_it_says() -> None:
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    assert weights_norm(layer) == pytest.approx(6**0.5)
    with moved(layer, torch.arange(8, dtype=torch.float64)):
        assert layer.weight.flatten().tolist() == [1, 2, 3, 4, 5, 6]
        assert layer.bias.tolist() == [6, 7]
    assert layer.weight.flatten().tolist() == [1] * 6


def test_a_parameter_that_the_loss_does_not_reach_has_gradient_zero() -> None:
    layer = torch.nn.Linear(2, 1)
    assert flat_gradient(3 * layer.bias.sum(), layer).tolist() == [0, 0, 3]


def probe(folder: Path, console: Console = QUIET, **changes: Any) -> list[Probe]:
    settings = CoherenceSettings(**{**SMALL, "sources": ("both",), **changes})
    site = open_projector_site(small_recipe(num_validation=4), device="cpu", console=QUIET)
    return runner.probe(coherence.COHERENCE, site, settings, folder, device="cpu", console=console)


def test_a_probe_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    first = probe(tmp_path, ways=("diffprune",))
    both = probe(tmp_path)
    assert both[0] == first[0]
    assert [line.setting["way"] for line in both] == ["diffprune", "gumbel-ste"]
    assert record.read(tmp_path / "probes.jsonl", Probe) == both
    assert both[1].shared["batch_size"] == 2
    assert both[1].environment["versions"]["torch"]


def test_a_training_that_kept_its_scorers_is_probed_along_its_way(tmp_path: Path) -> None:
    train_small(tmp_path / "scorer", num_validation=4, keep_scorers=True)
    lines = probe(tmp_path / "out", ways=("diffprune",), checkpoints=(str(tmp_path / "scorer"),))
    assert [line.step for line in lines] == [0, 2, 3]
    assert [line.checkpoint for line in lines] == [str(tmp_path / "scorer" / "steps" / step) for step in "023"]
    (fresh,) = probe(tmp_path / "fresh", ways=("diffprune",))
    assert (fresh.step, fresh.checkpoint, fresh.shared) == (0, None, lines[2].shared)
    assert lines[0].values == fresh.values
    assert lines[2].values != fresh.values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": (200,)}, "--keep: 200 of the tokens of toy-llava cannot be kept; give 1 to 144"),
        ({"ways": ("gumbel",)}, "--variant: unknown variant 'gumbel'; did you mean 'gumbel-ste'"),
        ({"held_out": 9}, "--data: 4 held-out images are fewer than 3 batches of 2; give more data"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        probe(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_progress_is_shown(tmp_path: Path) -> None:
    text = io.StringIO()
    probe(tmp_path, Console(file=text, force_terminal=True, width=80))
    assert "coherence" in text.getvalue()
    assert "2/2" in text.getvalue()
