"""Where the scorer of a probe sits: behind the projector of a vision-language model, or behind a patch embedding.

A probe sees a site only through this contract, so that every probe runs on both.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from dpbench.probe.settings import Way


class Site(Protocol):
    """A frozen model with a scorer in front of the part that reads its tokens.

    Attributes:
        name: "projector" or "patch".
        model: name of the frozen model.
    """

    name: str
    model: str

    @property
    def scorer(self) -> nn.Module:
        """Return the scorer, in whose parameters gradients are taken."""

    @property
    def num_tokens(self) -> int | None:
        """Return N, the tokens of an image; None if it depends on the image."""

    def load_batch(self, number: int, size: int, *, held_out: bool = False) -> Any:
        """Read and encode `size` images: the `number`-th part of the training images, or of the held-out ones."""

    def logits(self, batch: Any) -> Tensor:
        """Score every token, (R, N); and which of them are read is `valid`."""

    def valid(self, batch: Any) -> Tensor:
        """Return which tokens of the rows are read, (R, N) bool."""

    def loss(self, batch: Any, way: Way, *, keep: int, tau: float, noise: int) -> Tensor:
        """Return the mean loss with the tokens throttled this way; equal `noise` and places mean equal noise."""

    def deployed_loss(self, batch: Any, *, keep: int) -> float:
        """Return the mean loss under hard top-k: tokens removed, no throttler, no denoiser."""
