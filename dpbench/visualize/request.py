"""What `dpbench visualize` is asked to draw, and whether its names and budget can be. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpbench import backbones, registry
from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `dpbench visualize` draws.

    Attributes:
        image: a file.
        methods: names.
        params: their hyper-parameters, by method.
        out: the picture; its suffix gives the format.
        backbone: its name.
        budget: as requested.
        question: prompt for methods that read it.
        show: rows of the picture, of `picture.ROWS`; empty for all.
        weights: folder or hub repository in place of the default.
        revision: of a hub repository.
        device: "auto", "cpu" or "cuda".
        dtype: of the weights.
        image_aspect: "pad" or "crop"; by default the backbone's.
    """

    image: Path
    methods: Sequence[str]
    out: Path
    backbone: str = "toy-llava"
    budget: BudgetRequest = EVERYTHING
    question: str = "Describe the image."
    show: Sequence[str] = ()
    weights: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    image_aspect: str | None = None
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def check(request: Request) -> None:
    """Refuse unknown methods, and a budget that is missing or above the image's number of tokens.

    Raises:
        ConfigError: the message names the first of them.
    """
    if not request.methods:
        raise ConfigError("--method is missing; name one or several, as in --method random,diffprune")
    for name in request.methods:
        registry.find(name)
    num_visual, keep = backbones.find(request.backbone).num_visual, request.budget.keep
    if request.budget.keeps_all and any(name != "none" for name in request.methods):
        raise ConfigError("the methods need a budget; give --keep K or --prune-rate R")
    if keep is not None and num_visual is not None and keep > num_visual:
        raise ConfigError(f"--keep: {keep} is more than the {num_visual} visual tokens of {request.backbone}")
