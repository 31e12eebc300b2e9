"""Where the scorer of a probe sits: behind the projector of a vision-language model, or behind a patch embedding.

A probe sees a site only through this contract, so that every probe runs on both.

Shape letters: R rows (one view each), N tokens of a view, D their width, T predictions (caption tokens, or images), V
what is predicted (vocabulary, or classes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpbench.diffprune.objective import Budget, generator_of
from dpbench.diffprune.soft_topk import hard_topk_mask
from dpbench.diffprune.throttler import THROTTLERS, Gate, gumbel_noise
from dpbench.probe.settings import Way


class Site(Protocol):
    """A frozen model with a scorer in front of the part that reads its tokens.

    Attributes:
        name: "projector" or "patch".
        model: name of the frozen model.
        data: what it reads.
        seed: of images and noise.
    """

    name: str
    model: str
    data: str
    seed: int

    @property
    def scorer(self) -> nn.Module:
        """Return the scorer, in whose parameters gradients are taken."""

    @property
    def num_tokens(self) -> int | None:
        """Return N, the tokens of an image; None if it depends on the image."""

    def load_scorer(self, folder: Path) -> int:
        """Load a trained scorer in place of the one that is there and return the step it was trained to."""

    def load_batch(self, number: int, size: int, *, held_out: bool = False) -> Any:
        """Return `size` encoded images: the `number`-th part of the training images, or of the held-out ones."""

    def tokens(self, batch: Any) -> Tensor:
        """Return the tokens, (R, N, D)."""

    def logits(self, batch: Any) -> Tensor:
        """Score every token, (R, N)."""

    def valid(self, batch: Any) -> Tensor:
        """Return which tokens are read, (R, N) bool."""

    def budgets(self, batch: Any, keep: Budget) -> Tensor:
        """Return the budget of each row, (R,) float64."""

    def predict(self, batch: Any, tokens_RND: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions (T, V) from these tokens in place of the image's, and what is right, (T,) int64."""

    def predict_kept(self, batch: Any, kept_RN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same with every other token removed."""


def throttled_loss(site: Site, batch: Any, way: Way, *, keep: Budget, tau: float, noise: int) -> Tensor:
    """Return the mean loss with the tokens throttled by the scorer's logits, the denoiser left out.

    Args:
        site: where the scorer sits.
        batch: from `load_batch`.
        way: from logits to tokens.
        keep: budget.
        tau: temperature, in units of the logits.
        noise: number of the draw; equal numbers are equal noise, whatever the way and the logits.
    """
    logits_RN, tokens_RND = site.logits(batch), site.tokens(batch)
    tokens_RND = THROTTLERS[way.variant](logits_RN, tokens_RND, draw_gate(site, batch, way, keep, tau, noise))
    return cross_entropy(*site.predict(batch, tokens_RND))


def draw_gate(site: Site, batch: Any, way: Way, keep: Budget, tau: float, noise: int) -> Gate:
    """Return what a throttler needs besides logits and tokens."""
    tokens_RND = site.tokens(batch)
    device, generator = tokens_RND.device, generator_of(tokens_RND.device, site.seed, noise)
    normal = torch.randn(tokens_RND.shape, generator=generator, dtype=tokens_RND.dtype, device=device)
    return Gate(
        k_R=site.budgets(batch, keep),
        tau=tau,
        valid_RN=site.valid(batch),
        noise_RND=normal,
        gumbel_RN=gumbel_noise(tuple(tokens_RND.shape[:2]), generator).to(tokens_RND.dtype),
        fill=way.fill,
    )


@torch.no_grad()
def deployed_loss(site: Site, batch: Any, *, keep: Budget) -> float:
    """Return the mean loss under hard top-k: tokens removed, no throttler, no denoiser."""
    kept = hard_topk_mask(site.logits(batch), site.budgets(batch, keep).round(), site.valid(batch))
    return float(cross_entropy(*site.predict_kept(batch, kept)))
