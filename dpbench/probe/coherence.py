"""Coherence of the scorer's gradients over batches (Figure 1c), and what a step along their mean does when deployed.

Two things make gradients of two batches differ: their images and their noise. Each is also held fixed in turn.
Coherence alone rewards a soft loss, which agrees with itself and not with the deployed one; the deployed loss after a
step along the mean unit gradient does not.

Shape letters: B batches, P parameters of the scorer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.spread import deviations
from dpbench.probe.gradients import flat_gradient, moved, weights_norm
from dpbench.probe.projector_site import open_projector_site
from dpbench.probe.runner import Measured, Setting, run
from dpbench.probe.settings import CoherenceSettings, Sources, check_budgets, find_way
from dpbench.probe.site import Site
from dpbench.probe.statistics import pack
from dpbench.storage.record import Probe


def settings_of(settings: CoherenceSettings) -> Iterator[Setting]:
    """Yield what is measured for one checkpoint, the cheapest to compare first."""
    for tau in settings.tau:
        for keep in settings.keep:
            for sources in settings.sources:
                for way in settings.ways:
                    yield {"way": way, "keep": keep, "tau": tau, "sources": sources}


def measure(site: Site, setting: Setting, settings: CoherenceSettings, spread: float) -> dict[str, Any]:
    """Return the raw values of one measurement.

    Args:
        site: where the scorer sits.
        setting: from `settings_of`.
        settings: of the probe.
        spread: of the untrained scorer's logits, the unit of tau.

    Returns:
        "gram": inner products of the gradients, upper triangle; "losses": of the batches; and if batches differ in
        both, "after_step": deployed loss of every held-out batch at each step size, 0 first, flattened.
    """
    gradients, losses = [], []
    for number in range(settings.batches):
        loss = _loss(site, setting, settings, number, setting["tau"] * spread)
        gradients.append(flat_gradient(loss, site.scorer))
        losses.append(float(loss.detach()))
    gradients_BP = torch.stack(gradients)
    gram = (gradients_BP @ gradients_BP.T).cpu().numpy().astype(np.float64)
    values: dict[str, Any] = {"gram": pack(gram), "losses": tuple(losses)}
    if setting["sources"] == "both":
        values["after_step"] = tuple(_deployed_after_steps(site, setting, settings, gradients_BP))
    return values


def _loss(site: Site, setting: Setting, settings: CoherenceSettings, number: int, tau: float) -> Tensor:
    sources: Sources = setting["sources"]
    batch = site.load_batch(0 if sources == "noise" else number, settings.batch_size)
    noise = 0 if sources == "data" else number
    return site.loss(batch, find_way(setting["way"]), keep=setting["keep"], tau=tau, noise=noise)


def _deployed_after_steps(
    site: Site, setting: Setting, settings: CoherenceSettings, gradients_BP: Tensor
) -> Iterator[float]:
    """Yield the deployed loss of every held-out batch after each step against the mean unit gradient."""
    norms = gradients_BP.norm(dim=1, keepdim=True)
    mean_P = (gradients_BP / norms.clamp(min=torch.finfo(torch.float64).tiny)).mean(0)
    direction_P = -mean_P / mean_P.norm().clamp(min=torch.finfo(torch.float64).tiny)
    length = weights_norm(site.scorer)
    held_out = [site.load_batch(number, settings.batch_size, held_out=True) for number in range(settings.held_out)]
    for size in (0.0, *settings.step_sizes):
        with moved(site.scorer, size * length * direction_P):
            yield from (site.deployed_loss(batch, keep=setting["keep"]) for batch in held_out)


@torch.no_grad()
def measure_spread(site: Site, settings: CoherenceSettings) -> float:
    """Return the standard deviation of the logits over the tokens of a view, mean over the held-out batches' views."""
    found = []
    for number in range(settings.held_out):
        batch = site.load_batch(number, settings.batch_size, held_out=True)
        found.append(deviations(site.logits(batch), site.valid(batch)))
    return float(torch.cat(found).mean())


def probe(recipe: Recipe, settings: CoherenceSettings, folder: Path, *, device: str, console: Console) -> list[Probe]:
    """Measure coherence on a fresh scorer, or on every checkpoint of the settings, and return the records.

    Args:
        recipe: backbone, data and sizes, as of a training.
        settings: what is measured.
        folder: gets `probes.jsonl`.
        device: "auto", "cpu" or "cuda".
        console: shows the progress.

    Raises:
        ConfigError: data, budgets or checkpoints cannot be used.
        MissingError: weights or data are missing.
    """
    for way in settings.ways:
        find_way(way)
    site = open_projector_site(recipe, device=device, console=console)
    check_budgets("--keep", settings.keep, site.num_tokens, site.model)
    site.load_batch(settings.batches - 1, settings.batch_size)  # refuses too few images before anything is measured
    spread, records = measure_spread(site, settings), []
    for checkpoint in settings.checkpoints or (None,):
        step = site.load_scorer(Path(checkpoint)) if checkpoint else 0
        shared = {
            "spread": spread,
            "data": recipe.data,
            "parameters": sum(parameter.numel() for parameter in site.scorer.parameters()),
            **settings.model_dump(exclude={"ways", "keep", "tau", "sources", "checkpoints"}),
        }
        measured = Measured(
            probe="coherence",
            site=site,
            checkpoint=checkpoint,
            step=step,
            shared=shared,
            settings=list(settings_of(settings)),
            measure=partial(measure, site, settings=settings, spread=spread),
        )
        records += run(measured, folder, device=device, console=console)
    return records
