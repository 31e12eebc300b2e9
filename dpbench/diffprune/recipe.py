"""What a training is made of: every constant, with its default. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpbench.errors import ConfigError, did_you_mean, format_value

Variant = Literal["diffprune", "gumbel-ste", "scale-gate", "global-denoiser"]


class Recipe(BaseModel):
    """One training of a scorer. The paper's text lost its constants: all defaults are ours.

    A field with a description is also a flag of `dpbench train`.

    Attributes:
        backbone: as on the command line.
        weights: folder or hub repository in place of the default one, or "random" for timing.
        revision: commit, tag or branch of a hub repository.
        dtype: of the frozen backbone; scorer and denoiser are float32, under autocast with bfloat16.
        variant: throttler and denoiser: the paper's, or one of its Table 5's.
        keep: budgets, as `KeepRule.parse` reads them.
        data: "toy", a folder, files, shards, or a hub repository of image-caption pairs.
        fraction: share of the data to train on, a seeded subset.
        instruction: what the frozen backbone is asked of each image.
        num_validation: images held out for the validation loss.
        steps: optimiser steps; None is one epoch over the subset.
        batch_size: images a step, over all processes.
        micro_batch: images run at once, halved when memory runs out; None begins with the whole batch.
        lr: peak learning rate of AdamW.
        warmup: share of the steps in which the rate rises.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        tau: temperature of the soft top-k at the first and the last step, cosine between.
        hidden: width of scorer and denoiser.
        heads: their attention heads.
        layers: Transformer blocks of the scorer.
        ffn: feed-forward width over hidden width.
        gradient_checkpointing: run decoder layers again in the backward pass instead of keeping their insides.
        validate_every: steps between validation losses.
        patience: validations without an improvement after which training ends.
        save_minutes: minutes between checkpoints to resume from.
        num_workers: processes that read and decode images.
        seed: of weights, order of data, budgets and noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    weights: str | None = Field(
        default=None, description="Folder or hub repository in place of the default; or random."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub repository.")
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Type of the frozen backbone.")
    variant: Variant = Field(default="diffprune", description="DiffPrune, or a control of its ablations.")
    keep: str = Field(default="64,128,192", description="Budgets: 64, or 64,128,192, or shares as 0.05-0.4.")
    data: str = Field(description="Image-caption pairs: toy, folder, *.parquet, *.tar, hub.")
    fraction: float = Field(default=1.0, gt=0, le=1)
    instruction: str = "Describe the image."
    num_validation: int = Field(default=256, ge=1)
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps; one epoch by default.")
    batch_size: int = Field(default=16, ge=1, description="Images a step.")
    micro_batch: int | None = Field(default=None, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    tau: tuple[float, float] = (0.03, 0.003)
    hidden: int = Field(default=512, ge=4, multiple_of=4)
    heads: int = Field(default=8, ge=1)
    layers: int = Field(default=2, ge=1)
    ffn: int = Field(default=4, ge=1)
    gradient_checkpointing: bool = True
    validate_every: int = Field(default=500, ge=1)
    patience: int = Field(default=5, ge=1)
    save_minutes: float = Field(default=10.0, ge=0)
    num_workers: int = Field(default=4, ge=0)
    seed: int = Field(default=0, ge=0, description="Seed of weights, data order and noise.")

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        if min(self.tau) <= 0:
            raise ValueError(f"tau: both temperatures must be above 0, got {self.tau}")
        if self.hidden % self.heads:
            raise ValueError(f"heads: hidden must be a multiple of heads, got {self.hidden} and {self.heads}")
        return self


DEFAULTS: dict[str, dict[str, Any]] = {
    "toy-llava": {
        "data": "toy",
        "keep": "16,32,48",
        "steps": 400,
        "num_validation": 128,
        "lr": 1e-3,
        "hidden": 96,
        "heads": 4,
        "gradient_checkpointing": False,
        "validate_every": 100,
        "save_minutes": 1.0,
        "num_workers": 0,
    },
}
"""What a backbone changes of the defaults above."""


def make_recipe(backbone: str, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe for a backbone, with what the user set.

    Raises:
        ConfigError: an unknown setting, or a value it cannot take.
    """
    for name in settings:
        if name not in Recipe.model_fields:
            raise ConfigError(f"--param: training has no setting {name!r}; {did_you_mean(name, Recipe.model_fields)}")
    merged = {**DEFAULTS.get(backbone, {}), **settings, "backbone": backbone}
    if "data" not in merged:
        raise ConfigError(
            f"--data: {backbone} trains on image-caption pairs of yours; give a folder, *.parquet, *.tar, or a hub "
            "repository such as visual-layer/imagenet-1k-vl-enriched"
        )
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # settings that do not go together: the sentence names them
            raise ConfigError(f"--param {first['msg'].removeprefix('Value error, ')}") from None
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--param {where}: {first['msg']}, got {format_value(first['input'])}") from None
