"""The backbones by name, and how to load one. Listing them imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpbench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a backbone before anything heavy loads.

    Attributes:
        summary: one line for `dpbench list backbones`.
        module: the module that serves it.
        weights: default weights: a hub repository, or `package:` and a folder inside the package.
        native_resolution: the number of visual tokens follows the image, so budgets are rates.
    """

    summary: str
    module: str
    weights: str
    native_resolution: bool = False


FAMILIES: Mapping[str, Family] = {
    "llava-1.5": Family(
        "LLaVA-1.5-7B: CLIP ViT-L/14-336, 576 visual tokens", "dpbench.backbones.llava", "llava-hf/llava-1.5-7b-hf"
    ),
    "toy-llava": Family(
        "LLaVA in miniature, trained, inside the package: 144 visual tokens, runs on a laptop CPU",
        "dpbench.backbones.llava",
        "package:toy/weights",
    ),
}


def find(name: str) -> Family:
    """Return a backbone's family.

    Raises:
        ConfigError: there is no backbone of that name.
    """
    if name not in FAMILIES:
        raise ConfigError(f"--backbone: there is no backbone {name!r}; {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def load(name: str, *, weights: str | None = None, device: str = "cpu", dtype: str = "float32") -> Backbone:
    """Load a backbone's weights and processor.

    Args:
        name: as in `FAMILIES`.
        weights: a folder or hub repository in place of the default one.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ConfigError: unknown name.
        MissingError: the weights are not there.
    """
    family = find(name)
    serve = importlib.import_module(family.module)
    return serve.load(name, weights or family.weights, device=device, dtype=dtype)  # type: ignore[no-any-return]
