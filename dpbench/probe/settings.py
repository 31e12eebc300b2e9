"""What a probe measures and how much of it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dpbench.diffprune.recipe import STRAIGHT_THROUGH, Fill, Variant
from dpbench.errors import ConfigError, did_you_mean

Sources = Literal["both", "data", "noise"]
"""What differs between two batches: images and noise, images alone, or noise alone."""


class Way(BaseModel):
    """One way from scores to what the frozen model reads: a variant, and what stands in for what it drops."""

    model_config = ConfigDict(frozen=True)

    variant: Variant
    fill: Fill = "zero"

    @property
    def name(self) -> str:
        """Return the name as on the command line."""
        return self.variant if self.fill == "zero" else f"{self.variant}-{self.fill}"


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way(variant="diffprune"),
        *(Way(variant=variant, fill=fill) for variant in STRAIGHT_THROUGH for fill in ("zero", "mean", "noise")),
        Way(variant="scale-gate"),
    )
}
"""Every way by its name. The global denoiser begins as the diagonal one does, so untrained they are the same."""


def find_way(name: str) -> Way:
    """Return the way of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in WAYS:
        raise ConfigError(f"--variant: unknown variant {name!r}; {did_you_mean(name, WAYS)}")
    return WAYS[name]


def check_budgets(flag: str, budgets: Sequence[int], num_tokens: int | None, model: str) -> None:
    """Refuse budgets outside 1 .. N; N is None if it depends on the image.

    Raises:
        ConfigError: names the first of them.
    """
    for keep in budgets:
        if keep < 1 or (num_tokens is not None and keep > num_tokens):
            most = f"1 to {num_tokens}" if num_tokens is not None else "at least 1"
            raise ConfigError(f"{flag}: {keep} of the tokens of {model} cannot be kept; give {most}")


class CoherenceSettings(BaseModel):
    """What `dpbench probe coherence` measures: every variant at every budget, temperature and source of difference.

    Attributes:
        ways: names of variants.
        keep: budgets in visual tokens.
        tau: temperatures, in units of the spread of the untrained scorer's logits as in a recipe.
        sources: what differs between batches.
        batches: gradients to compare.
        batch_size: images of a gradient.
        step_sizes: lengths of a step along the mean unit gradient, as shares of the weights' norm.
        held_out: batches whose deployed loss is measured after each step.
        checkpoints: folders of trained scorers; none means a fresh one.
        seed: of weights, images and noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ways: tuple[str, ...] = ("diffprune", "gumbel-ste", "gumbel-ste-mean", "scale-gate")
    keep: tuple[int, ...] = Field(default=(16, 48), min_length=1)
    tau: tuple[float, ...] = (0.015, 0.15, 1.5, 5.0)
    sources: tuple[Sources, ...] = ("both", "data", "noise")
    batches: int = Field(default=24, ge=3)
    batch_size: int = Field(default=4, ge=1)
    step_sizes: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    held_out: int = Field(default=8, ge=2)
    checkpoints: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
