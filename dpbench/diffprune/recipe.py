"""Every constant of a training, with its default. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpbench import backbones
from dpbench.errors import ConfigError, did_you_mean, format_value

Variant = Literal["diffprune", "gumbel-ste", "identity-ste", "scale-gate", "global-denoiser"]
Fill = Literal["zero", "mean", "noise"]
STRAIGHT_THROUGH: tuple[Variant, ...] = ("gumbel-ste", "identity-ste")
"""The variants that drop tokens while training."""


class Recipe(BaseModel):
    """One training of a scorer. The paper's text lost its constants: all defaults are ours.

    A field with a description is also a flag of `dpbench train`; the others are set by `--param name=value`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str  # as on the command line
    weights: str | None = Field(
        default=None, description="Folder or hub repository in place of the default; or random."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub repository.")
    # scorer and denoiser are float32, with bfloat16 under autocast
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Type of the frozen backbone.")
    image_aspect: Literal["pad", "crop"] | None = Field(
        default=None, description="LLaVA-1.5: pad images to a square, as by default, or crop them to one."
    )
    variant: Variant = Field(default="diffprune", description="DiffPrune, or a control of its ablations.")
    fill: Fill = "zero"  # straight-through variants: what stands in for a dropped token
    keep: str = Field(
        default="64,128,192",
        description="Budgets: 64, or 64,128,192, or shares as 0.05-0.4.",
        coerce_numbers_to_str=True,  # --param keep=64 is read as a number
    )
    data: str = Field(description="Image-caption pairs: toy, folder, *.parquet, *.tar, hub.")
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of the data to train on, a seeded subset
    caption: Literal["first", "random"] = "first"  # of an image with several: the first, or another one in every epoch
    instruction: str = "Describe the image."  # what the frozen backbone is asked about each image
    num_validation: int = Field(default=256, ge=1)  # images held out for the validation loss
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps; one epoch by default.")
    batch_size: int = Field(default=16, ge=1, description="Images a step, over all processes.")
    micro_batch: int | None = Field(default=None, ge=1)  # images run at once; the whole batch by default
    lr: float = Field(default=2e-4, gt=0)  # peak learning rate of AdamW
    warmup: float = Field(default=0.03, ge=0, lt=1)  # share of the steps in which the rate rises
    weight_decay: float = Field(default=0.01, ge=0)  # of AdamW
    clip: float = Field(default=1.0, gt=0)  # largest norm of the gradient
    # temperature of the soft top-k at the first and last step, cosine between; in units of the spread of the untrained
    # scorer's logits within an image, so that it is as soft on any backbone
    tau: tuple[float, float] = (0.15, 0.015)
    hidden: int = Field(default=512, ge=4, multiple_of=4)  # width of scorer and denoiser
    heads: int = Field(default=8, ge=1)  # their attention heads
    layers: int = Field(default=2, ge=1)  # Transformer blocks of the scorer
    ffn: int = Field(default=4, ge=1)  # feed-forward width over hidden width
    gradient_checkpointing: bool = True  # run decoder layers again in the backward pass instead of storing activations
    validate_every: int = Field(default=500, ge=1)  # steps between validation losses
    keep_scorers: bool = False  # also keep the scorer of every validation, in steps/STEP, to probe along a training
    patience: int = Field(default=5, ge=1)  # validations without an improvement after which training ends
    save_minutes: float = Field(default=10.0, ge=0)  # between checkpoints to resume from
    num_workers: int = Field(default=4, ge=0)  # processes that read and decode images
    seed: int = Field(default=0, ge=0, description="Seed of weights, data order and noise.")

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        if min(self.tau) <= 0:
            raise ValueError(f"tau: both temperatures must be above 0, got {self.tau}")
        if self.fill != "zero" and self.variant not in STRAIGHT_THROUGH:
            raise ValueError(f"fill: {self.variant} drops no token; remove it, or give --variant gumbel-ste")
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
"""Defaults that differ for a backbone."""


def make_recipe(backbone: str, settings: Mapping[str, Any]) -> Recipe:
    """Build the recipe for a backbone from its defaults and the user's settings.

    Raises:
        ConfigError: a setting is unknown or has an invalid value.
    """
    for name in settings:
        if name not in Recipe.model_fields:
            raise ConfigError(f"--param: training has no setting {name!r}; {did_you_mean(name, Recipe.model_fields)}")
    aspect = backbones.find(backbone).image_aspect
    if aspect is None and "image_aspect" in settings:
        raise ConfigError(f"--image-aspect: {backbone} reads images of any shape; remove it")
    merged = {"image_aspect": aspect, **DEFAULTS.get(backbone, {}), **settings, "backbone": backbone}
    if "data" not in merged:
        raise ConfigError(
            f"--data: {backbone} needs image-caption pairs to train on; give a folder, *.parquet, *.tar, or a hub "
            "repository such as visual-layer/imagenet-1k-vl-enriched"
        )
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a check of several settings, whose message names them
            raise ConfigError(f"--param {first['msg'].removeprefix('Value error, ')}") from None
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--param {where}: {first['msg']}, got {format_value(first['input'])}") from None
