"""A requested budget of visual tokens: a count, a share to remove, or everything. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from dpbench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BudgetRequest:
    """What was asked for, before it meets an image; with neither field, every visual token is kept.

    Attributes:
        keep: visual tokens per image, at least 1.
        prune_rate: share of an image's visual tokens to remove, 0 <= rate < 1.

    Raises:
        ConfigError: both fields are set, or one is out of its range.
    """

    keep: int | None = None
    prune_rate: float | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.prune_rate is not None:
            raise ConfigError("--keep and --prune-rate both set the budget; give one of them")
        if self.keep is not None and self.keep < 1:
            raise ConfigError(f"--keep: must be at least 1, got {self.keep}")
        if self.prune_rate is not None and not 0 <= self.prune_rate < 1:
            raise ConfigError(f"--prune-rate: must be at least 0 and below 1, got {self.prune_rate}")

    @property
    def keeps_all(self) -> bool:
        """Return True if nothing is to be removed."""
        return self.keep is None and self.prune_rate is None

    @property
    def label(self) -> str:
        """Return the budget as tables show it: 64, -88.9%, or all."""
        if self.keep is not None:
            return str(self.keep)
        return "all" if self.prune_rate is None else f"-{100 * self.prune_rate:.1f}%"

    def count(self, num_visual: int) -> int:
        """Return how many of an image's visual tokens to keep, newlines not counted.

        A rate keeps `max(1, round(N * (1 - rate)))`; Python rounds half to even.
        """
        if self.keep is not None:
            return min(self.keep, num_visual)
        return num_visual if self.prune_rate is None else max(1, round(num_visual * (1 - self.prune_rate)))

    def per_view(self, num_views: int) -> BudgetRequest:
        """Return the request for one of so many views: an equal part of a count, the same rate."""
        return self if self.keep is None else BudgetRequest(keep=max(1, self.keep // num_views))


EVERYTHING = BudgetRequest()


ROUNDING = 0.5
"""Tokens by which one image may exceed its budget: cuts inside the LLM leave whole tokens to whole layers."""


def tolerance(budget: float) -> float:
    """Return by how many tokens the mean over images may lie above a budget: half a token, or 1 % of a large one."""
    return max(ROUNDING, 0.01 * budget)
