"""From flags to what a probe measures, and the recipe of the scorer it measures it on. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from dpbench import registry
from dpbench.cli.arguments import split_names
from dpbench.cli.flags import Given
from dpbench.diffprune.recipe import Recipe, make_recipe
from dpbench.errors import ConfigError, did_you_mean
from dpbench.probe.settings import SETTINGS, ProbeSettings


class ProbeFlags(BaseModel):
    """The flags of every probe; lists are text with commas, and what is not given is as by default."""

    backbone: str = Field(default="toy-llava", description="Backbone behind whose projector the scorer sits.")
    classifier: str | None = Field(
        default=None, description="Or a ViT or DeiT behind whose patch embedding it sits: folder or hub repository."
    )
    variant: str | None = Field(default=None, description="Ways to train, with commas: diffprune,gumbel-ste-mean.")
    keep: str | None = Field(default=None, description="Budgets, counts or shares, with commas.")
    tau: str | None = Field(default=None, description="Temperatures in units of the fresh scores' spread, with commas.")
    checkpoints: str | None = Field(default=None, description="Folders of trained scorers, with commas.")
    data: str | None = Field(default=None, description="Images with captions, or with classes for a classifier.")
    weights: str | None = Field(default=None, description="Folder or hub repository in place of the default; random.")
    seed: int = Field(default=0, description="Seed of weights, images and noise.")


LISTS = {"variant": "ways", "keep": "keep", "tau": "tau", "checkpoints": "checkpoints"}
"""Flags that are lists, and the setting of the probe that each fills."""


def build_settings(probe: str, flags: Given, params: Sequence[str]) -> tuple[ProbeSettings, dict[str, Any]]:
    """Return what a probe measures, and those parameters that are a recipe's.

    Raises:
        ConfigError: a setting has an invalid value, or neither the probe nor a recipe knows it.
    """
    kind, given = SETTINGS[probe], registry.parse_params(list(params))
    own = {name: value for name, value in given.items() if name in kind.model_fields}
    rest = {name: value for name, value in given.items() if name not in own}
    for name in rest:
        if name not in Recipe.model_fields:
            known = [*kind.model_fields, *Recipe.model_fields]
            raise ConfigError(f"--param: {probe} has no setting {name!r}; {did_you_mean(name, known)}")
    lists = {field: _parse_list(flag, flags[flag]) for flag, field in LISTS.items() if flag in flags}
    seed = {"seed": flags["seed"]} if "seed" in flags else {}
    try:
        return kind.model_validate({**own, **lists, **seed}), rest
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{probe}: {name}: {first['msg'].removeprefix('Value error, ')}") from None


def _parse_list(flag: str, text: str) -> list[Any]:
    parts = split_names([text])
    if flag in ("variant", "checkpoints"):
        return parts
    try:
        return [float(part) if flag == "tau" or "." in part else int(part) for part in parts]
    except ValueError:
        raise ConfigError(f"--{flag}: {text!r} is not a list of numbers; give for example 16,48") from None


def check_site(flags: Given, recipe_params: Mapping[str, Any]) -> None:
    """Refuse flags that do not go together.

    Raises:
        ConfigError: names the flag that would be ignored, or that is missing.
    """
    if "classifier" not in flags:
        return
    for flag in ("backbone", "weights"):
        if flag in flags:
            raise ConfigError(f"--classifier and --{flag} are two models; give one of them")
    if recipe_params:
        raise ConfigError(f"--param {next(iter(recipe_params))}: a classifier's scorer has no recipe; remove it")
    if "data" not in flags:
        raise ConfigError("--classifier: needs images with classes; give --data FOLDER, one sub-folder per class")


def build_recipe(flags: Given, params: Mapping[str, Any]) -> Recipe:
    """Return backbone, data and sizes of the scorer, as of a training.

    Raises:
        ConfigError: an invalid value.
    """
    settings = {name: flags[name] for name in ("data", "weights", "seed") if name in flags}
    return make_recipe(flags.get("backbone", "toy-llava"), {**settings, **params})


def probe_folder(flags: Given, out: Path | None) -> Path:
    """Return where a probe writes: `out`, or a folder under results/ named after the model."""
    model = Path(flags["classifier"]).name if "classifier" in flags else flags.get("backbone", "toy-llava")
    return out or Path("results") / f"probe-{model}"
