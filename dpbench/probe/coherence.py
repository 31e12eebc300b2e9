"""Coherence of the scorer's gradients over batches (Figure 1c), and what a step along their mean does when deployed.

Two things make gradients of two batches differ: their images and their noise. Each is also held fixed in turn.
Coherence alone rewards a soft loss, which agrees with itself and not with the deployed one; the deployed loss after a
step along the mean unit gradient does not.

Shape letters: B batches, P parameters of the scorer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpbench.probe.gradients import flat_gradient, moved, weights_norm
from dpbench.probe.runner import Kind, Setting
from dpbench.probe.settings import CoherenceSettings, Sources, find_way
from dpbench.probe.site import Site, deployed_loss, throttled_loss
from dpbench.probe.statistics import pack


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
    return throttled_loss(site, batch, find_way(setting["way"]), keep=setting["keep"], tau=tau, noise=noise)


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
            yield from (deployed_loss(site, batch, keep=setting["keep"]) for batch in held_out)


COHERENCE = Kind("coherence", settings_of, measure)
