"""A manifest: the YAML file that describes a comparison, and its expansion into cells. No torch.

Command-line flags build the same `Manifest`, so there is one way to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dpbench import backbones, registry, tasks
from dpbench.errors import ConfigError

CHOOSERS = ("none", "downsample")
"""Methods the hard subset is chosen by: what the first gets right and the second wrong."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _named(value: object) -> object:
    """Let `name` stand for `{name: name}`."""
    return {"name": value} if isinstance(value, str) else value


def _known_to(find: Callable[[str], object]) -> AfterValidator:
    """Refuse a name that is not known, at its place in the manifest."""

    def check(name: str) -> str:
        try:
            find(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


_BackboneName = Annotated[str, _known_to(backbones.find)]
_MethodName = Annotated[str, _known_to(registry.find)]
_TaskName = Annotated[str, _known_to(tasks.find)]


def _batch_size(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("give a whole number from 1, or auto")


class BackboneEntry(_Strict):
    """Which vision-language model, which weights if not its default ones, and how they are packed and placed."""

    name: _BackboneName
    weights: str | None = None
    revision: str | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    device_map: Literal["auto"] | None = None


class MethodEntry(_Strict):
    """A method and its hyper-parameters."""

    name: _MethodName
    params: dict[str, Any] = Field(default_factory=dict)


class Budgets(_Strict):
    """How many visual tokens: counts or shares removed, one or the other."""

    keep: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], Field(min_length=1)] | None = None
    prune_rate: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)] | None = None
    kind: Literal["mean", "final"] = "mean"

    @model_validator(mode="after")
    def _one_form(self) -> Budgets:
        if (self.keep is None) == (self.prune_rate is None):
            raise ValueError("give either keep (counts) or prune_rate (shares removed)")
        return self


class Protocol(_Strict):
    """Everything else that can change an answer, and how many samples are answered at once."""

    prompt: Literal["default", "template", "vicuna_v1"] = "default"
    ocr: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    batch_size: Annotated[Literal["auto"] | int, BeforeValidator(_batch_size)] = "auto"
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    limit: Annotated[int, Field(ge=1)] | None = None
    subset: Literal["hard"] | None = None
    anyres: Literal["per-view", "global"] = "per-view"
    newline: Literal["keep", "drop"] = "drop"
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None


class Manifest(_Strict):
    """A comparison: one backbone, several methods at several budgets on several tasks."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    backbone: Annotated[BackboneEntry, BeforeValidator(_named)]
    methods: list[Annotated[MethodEntry, BeforeValidator(_named)]] = Field(min_length=1)
    budgets: Budgets | None = None
    tasks: list[_TaskName] = Field(default_factory=lambda: list(tasks.TASKS), min_length=1)
    protocol: Protocol = Protocol()

    @model_validator(mode="after")
    def _known(self) -> Manifest:
        family = backbones.find(self.backbone.name)
        self._no_setting_without_effect(family)
        if self.protocol.subset and all(method.name in CHOOSERS for method in self.methods):
            raise ConfigError(f"protocol.subset: it is chosen by {' and '.join(CHOOSERS)}; name another method to run")
        if self.budgets is None and any(method.name != "none" for method in self.methods):
            raise ConfigError("budgets: every method but 'none' needs one; give keep: [..] or prune_rate: [..]")
        most = family.num_visual
        for keep in (self.budgets.keep or []) if self.budgets else []:
            if most is not None and keep > most:
                raise ConfigError(f"--keep: {keep} is more than the {most} visual tokens of {self.backbone.name}")
        return self

    def _no_setting_without_effect(self, family: backbones.Family) -> None:
        name, given = self.backbone.name, self.protocol
        for setting, usual in (("anyres", "per-view"), ("newline", "drop")):
            if not family.tiles and getattr(given, setting) != usual:
                raise ConfigError(f"protocol.{setting}: {name} has one view and no tiles; leave it out")
        for setting in ("min_pixels", "max_pixels"):
            if not family.native_resolution and getattr(given, setting) is not None:
                raise ConfigError(f"protocol.{setting}: {name} reads images at a size of its own; leave it out")
        if (given.min_pixels or 0) > (given.max_pixels or float("inf")):
            raise ConfigError(f"protocol: min_pixels {given.min_pixels} is more than max_pixels {given.max_pixels}")
        if given.prompt == "vicuna_v1" and family.prompt != "vicuna_v1":
            raise ConfigError(
                f"protocol.prompt: vicuna_v1 is LLaVA-1.5's conversation, {name} has another; leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One (backbone, method, budget, task) under one protocol: the unit that runs, resumes and is recorded.

    keep and prune_rate are both None for the unpruned backbone; `fingerprints` holds the hashes and versions of
    everything else that can change the answers.
    """

    backbone: str
    weights: str | None
    revision: str | None
    quantize: str | None
    method: str
    params: Mapping[str, Any]
    keep: int | None
    prune_rate: float | None
    budget_kind: str
    task: str
    prompt: str
    ocr: bool
    dtype: str
    attention: str
    anyres: str
    newline: str
    min_pixels: int | None
    max_pixels: int | None
    seed: int
    limit: int | None
    subset: str | None
    fingerprints: Mapping[str, str]

    @property
    def id(self) -> str:
        """Return the cell's identity: sixteen hex digits over everything above."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def budget_label(self) -> str:
        """Return the budget as tables show it."""
        if self.keep is not None:
            return str(self.keep)
        return "all" if self.prune_rate is None else f"-{100 * self.prune_rate:.1f}%"

    @property
    def label(self) -> str:
        """Return a short name for progress bars and messages."""
        params = ",".join(f"{name}={value}" for name, value in self.params.items())
        task = f"{self.task}, {self.subset} subset" if self.subset else self.task
        return f"{self.method}{f'[{params}]' if params else ''} @ {self.budget_label} on {task}"


def cells(manifest: Manifest) -> Iterator[Cell]:
    """Expand a manifest into cells without fingerprints; the unpruned backbone has one per task and seed.

    Of a subset the methods it is chosen by have none: one is right on all of it, one wrong.
    """
    protocol = manifest.protocol
    family = backbones.find(manifest.backbone.name)
    for seed in protocol.seeds:
        for method in manifest.methods:
            registry.load(method.name, method.params)
            if protocol.subset and method.name in CHOOSERS:
                continue
            for keep, rate in _budgets(manifest, method.name):
                for task in manifest.tasks:
                    yield Cell(
                        backbone=manifest.backbone.name,
                        weights=manifest.backbone.weights,
                        revision=manifest.backbone.revision,
                        quantize=manifest.backbone.quantize,
                        method=method.name,
                        params=method.params,
                        keep=keep,
                        prune_rate=rate,
                        budget_kind=manifest.budgets.kind if manifest.budgets else "mean",
                        task=task,
                        prompt=family.prompt if protocol.prompt == "default" else protocol.prompt,
                        ocr=protocol.ocr,
                        dtype=protocol.dtype,
                        attention=protocol.attention,
                        anyres=protocol.anyres,
                        newline=protocol.newline,
                        min_pixels=protocol.min_pixels,
                        max_pixels=protocol.max_pixels,
                        seed=seed,
                        limit=protocol.limit,
                        subset=protocol.subset,
                        fingerprints={},
                    )


def _budgets(manifest: Manifest, method: str) -> list[tuple[int | None, float | None]]:
    if method == "none" or manifest.budgets is None:
        return [(None, None)]
    if manifest.budgets.keep is not None:
        return [(keep, None) for keep in manifest.budgets.keep]
    return [(None, rate) for rate in manifest.budgets.prune_rate or []]


def with_fingerprints(cell: Cell, fingerprints: Mapping[str, str]) -> Cell:
    """Return the cell that is going to run, with the hashes and versions it runs under."""
    return replace(cell, fingerprints=dict(fingerprints))
