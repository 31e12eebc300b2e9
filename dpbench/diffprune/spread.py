"""The spread of the untrained scorer's logits: the unit in which a recipe gives the temperature of the soft top-k.

How far apart fresh logits lie depends on width, depth and seed. In units of that, a temperature is as soft on any
backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpbench.diffprune.setup import Setup

DIGITS = 3
"""Significant digits that are kept, so that the size of a micro-batch does not change the temperature."""


@torch.no_grad()
def measure_spread(setup: Setup, micro_batch: int) -> float:
    """Return the standard deviation of the logits over the tokens of a view, mean over the held-out images' views.

    Args:
        setup: of a training whose scorer has not made a step.
        micro_batch: images to run at once.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for examples in setup.held_out_batches(micro_batch):
        with setup.autocast():
            batch = setup.objective.encode(examples)
            logits_RN = setup.objective.logits(batch)
        deviations_R = deviations(logits_RN, batch.rows("read_N"))
        sums += torch.tensor([float(deviations_R.sum()), len(deviations_R)], dtype=torch.float64)
    total, count = setup.accelerator.reduce(sums.to(setup.accelerator.device), "sum").tolist()
    return float(f"{total / count:.{DIGITS}g}")


def deviations(logits_RN: Tensor, valid_RN: Tensor) -> Tensor:
    """Return the standard deviation of every row over its valid items, (R,) float64."""
    logits, valid = logits_RN.double(), valid_RN.double()
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = (valid * logits).sum(-1, keepdim=True) / count
    return ((valid * (logits - mean).square()).sum(-1, keepdim=True) / count).sqrt()[:, 0]
