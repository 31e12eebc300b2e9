"""What a probe measures and how much of it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dpbench.diffprune.recipe import STRAIGHT_THROUGH, Fill, Variant
from dpbench.errors import ConfigError, did_you_mean

Sources = Literal["both", "data", "noise"]
"""What differs between two batches: images and noise, images alone, or noise alone."""

Form = Literal["removal", "mask", "soft"]
"""How tokens are restricted: removed, noise in their place, or mixed with noise by soft weights."""


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


def check_budgets(flag: str, budgets: Sequence[int | float], num_tokens: int | None, model: str) -> None:
    """Refuse counts outside 1 .. N and shares outside 0 .. 1; N is None if it depends on the image.

    Raises:
        ConfigError: names the first of them.
    """
    for keep in budgets:
        if isinstance(keep, float) and 0 < keep < 1:
            continue
        if isinstance(keep, float) or keep < 1 or (num_tokens is not None and keep > num_tokens):
            most = f"1 to {num_tokens}" if num_tokens is not None else "at least 1"
            raise ConfigError(
                f"{flag}: {keep} of the tokens of {model} cannot be kept; give {most}, or a share below 1"
            )


class ProbeSettings(BaseModel):
    """What all probes have in common.

    Attributes:
        ways: names of variants.
        keep: budgets in visual tokens, or shares of them.
        tau: temperatures, in units of the spread of the untrained scorer's logits as in a recipe.
        batches: of images that a measurement reads.
        batch_size: images of a batch.
        held_out: batches for the spread, and for deployed losses.
        checkpoints: folders of trained scorers; none means a fresh one.
        seed: of weights, images and noise.
        grid: fields that only say how many measurements there are; a measurement does not depend on them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    grid: ClassVar[frozenset[str]] = frozenset({"ways", "keep", "tau", "checkpoints"})

    ways: tuple[str, ...] = ("diffprune", "gumbel-ste", "gumbel-ste-mean", "scale-gate")
    keep: tuple[int | float, ...] = Field(default=(16, 48), min_length=1)
    tau: tuple[float, ...] = (0.015, 0.15, 1.5)
    batches: int = Field(default=1, ge=1)
    batch_size: int = Field(default=4, ge=1)
    held_out: int = Field(default=8, ge=1)
    checkpoints: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)

    @field_validator("tau")
    @classmethod
    def _positive(cls, tau: tuple[float, ...]) -> tuple[float, ...]:
        if not tau or min(tau) <= 0:
            raise ValueError(f"every temperature must be above 0, got {tau}")
        return tau


class CoherenceSettings(ProbeSettings):
    """What `dpbench probe coherence` measures: every variant at every budget, temperature and source of difference.

    Attributes:
        sources: what differs between batches.
        step_sizes: lengths of a step along the mean unit gradient, as shares of the weights' norm.
    """

    grid: ClassVar[frozenset[str]] = ProbeSettings.grid | {"sources"}

    sources: tuple[Sources, ...] = ("both", "data", "noise")
    batches: int = Field(default=24, ge=3)
    step_sizes: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)


class LandscapeSettings(ProbeSettings):
    """What `dpbench probe landscape` measures: lines in several directions, and one map.

    Attributes:
        ranges: how far a line goes to each side, in lengths of a weight row.
        directions: lines; the first two also span the map.
        points: of a line.
        map_points: rows and columns of the map; 0 for none.
    """

    grid: ClassVar[frozenset[str]] = ProbeSettings.grid | {"ranges", "directions", "map_points"}

    tau: tuple[float, ...] = (0.15,)
    batch_size: int = Field(default=6, ge=1)
    ranges: tuple[float, ...] = (1.0, 0.05)
    directions: int = Field(default=10, ge=2)
    points: int = Field(default=41, ge=5)
    map_points: int = Field(default=0, ge=0)


class NoiseSettings(ProbeSettings):
    """What `dpbench probe noise` measures: every form of restriction at every budget.

    Attributes:
        scores: random ones, or the scorer's.
        forms: remove the tokens below the threshold, put noise in their place, or mix by soft weights.
    """

    grid: ClassVar[frozenset[str]] = ProbeSettings.grid | {"scores", "forms"}

    keep: tuple[int | float, ...] = Field(default=(0.75, 0.5, 0.25, 0.11), min_length=1)
    scores: tuple[Literal["random", "scorer"], ...] = ("random", "scorer")
    forms: tuple[Form, ...] = ("removal", "mask", "soft")
    tau: tuple[float, ...] = (0.15, 1.5)
    batches: int = Field(default=8, ge=2)


SETTINGS: dict[str, type[ProbeSettings]] = {
    "coherence": CoherenceSettings,
    "landscape": LandscapeSettings,
    "noise": NoiseSettings,
}
"""The settings of each probe, by its name on the command line."""
