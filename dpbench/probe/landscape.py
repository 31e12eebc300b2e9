"""The loss of the scorer along random directions in its weights (Figure 2), over the same images and noise.

Directions are filter-normalised (Li et al. 2018): Gaussian, each row of a weight matrix as long as that row of the
scorer's, biases and norms left alone. A step is |L(i+1) - L(i)| along a line. Its mean alone misleads: it is small for
a few jumps between flat stretches, so second differences and the largest jump are read from the same values.

Shape letter: P parameters of the scorer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dpbench.probe.gradients import moved
from dpbench.probe.runner import Kind, Setting
from dpbench.probe.settings import LandscapeSettings, find_way
from dpbench.probe.site import Site, throttled_loss


def draw_direction(scorer: nn.Module, seed: int, number: int) -> Tensor:
    """Return a filter-normalised Gaussian direction, (P,) float64, a function of seed and number."""
    rng = np.random.default_rng([seed, number])
    weights = [parameter.detach().cpu().double() for parameter in scorer.parameters()]
    return torch.cat([_direction_of(part, rng).flatten() for part in weights])


def _direction_of(weights: Tensor, rng: np.random.Generator) -> Tensor:
    if weights.ndim < 2:
        return torch.zeros_like(weights)
    rows = torch.from_numpy(rng.standard_normal((len(weights), weights[0].numel())))
    lengths = weights.flatten(1).norm(dim=1, keepdim=True)
    scaled: Tensor = rows * lengths / rows.norm(dim=1, keepdim=True)
    return scaled.view_as(weights)


def settings_of(settings: LandscapeSettings) -> Iterator[Setting]:
    """Yield lines, then the rows of the maps; each is one measurement, so that a stopped probe loses one."""
    common = [
        {"way": way, "keep": keep, "tau": tau, "range": size}
        for tau in settings.tau
        for keep in settings.keep
        for size in settings.ranges
        for way in settings.ways
    ]
    for number in range(settings.directions):
        yield from ({**one, "line": number} for one in common)
    largest = max(settings.ranges)
    for row in range(settings.map_points):
        yield from (
            {**one, "map_row": row, "map_points": settings.map_points} for one in common if one["range"] == largest
        )


def measure(site: Site, setting: Setting, settings: LandscapeSettings, spread: float) -> dict[str, tuple[float, ...]]:
    """Return the losses along a line or a row of the map, from -range to +range.

    Args:
        site: where the scorer sits.
        setting: from `settings_of`.
        settings: of the probe.
        spread: of the untrained scorer's logits, the unit of tau.
    """
    size = setting["range"]
    if "line" in setting:
        direction = draw_direction(site.scorer, settings.seed, setting["line"])
        offset, points = torch.zeros_like(direction), settings.points
    else:
        direction = draw_direction(site.scorer, settings.seed, 0)
        across = torch.linspace(-size, size, settings.map_points, dtype=torch.float64)[setting["map_row"]]
        offset, points = across * draw_direction(site.scorer, settings.seed, 1), settings.map_points
    along = torch.linspace(-size, size, points, dtype=torch.float64)
    return {"losses": tuple(_loss_at(site, offset + a * direction, setting, settings, spread) for a in along)}


@torch.no_grad()
def _loss_at(site: Site, step_P: Tensor, setting: Setting, settings: LandscapeSettings, spread: float) -> float:
    """Return the loss with the scorer moved, mean over batches; images and noise are the same at every point."""
    arguments = {"keep": setting["keep"], "tau": setting["tau"] * spread}
    with moved(site.scorer, step_P.to(next(site.scorer.parameters()).device)):
        losses = []
        for number in range(settings.batches):
            batch = site.load_batch(number, settings.batch_size)
            losses.append(float(throttled_loss(site, batch, find_way(setting["way"]), **arguments, noise=number)))
    return float(np.mean(losses))


LANDSCAPE = Kind("landscape", settings_of, measure)
