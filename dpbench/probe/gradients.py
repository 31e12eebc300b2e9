"""Gradients of a site's loss in the parameters of its scorer, as one long vector, and steps along such a vector.

Shape letter: P parameters of the scorer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def flat_gradient(loss: Tensor, scorer: nn.Module) -> Tensor:
    """Return the gradient of a loss in all parameters of the scorer, (P,) float64; zero where it does not reach."""
    parameters = list(scorer.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.double().flatten() for part in parts])


def weights_norm(scorer: nn.Module) -> float:
    """Return the Euclidean norm of all parameters."""
    norms = torch.stack([parameter.detach().double().norm() for parameter in scorer.parameters()])
    return float(norms.norm())


@contextmanager
def moved(scorer: nn.Module, step_P: Tensor) -> Iterator[None]:
    """Add a step to the parameters inside the block; afterwards they have their old bits again."""
    parameters = list(scorer.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    with torch.no_grad():
        for parameter, part in zip(parameters, step_P.split(sizes), strict=True):
            parameter.add_(part.view_as(parameter).to(parameter.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
