"""A manifest: the YAML file that describes a comparison. No torch.

Command-line flags build the same `Manifest`, so there is one way to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dpbench import backbones, registry, tasks
from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _expand_name(value: object) -> object:
    """Expand a bare name to `{name: name}`."""
    return {"name": value} if isinstance(value, str) else value


def _registered_in(find: Callable[[str], object]) -> AfterValidator:
    """Return a validator that rejects unknown names, so that the error points to the name in the manifest."""

    def check(name: str) -> str:
        try:
            find(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


_BackboneName = Annotated[str, _registered_in(backbones.find)]
_MethodName = Annotated[str, _registered_in(registry.find)]
_TaskName = Annotated[str, _registered_in(tasks.find)]


def _batch_size(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be auto or a whole number, at least 1")


def _valid_budget(field: str) -> AfterValidator:
    """Return a validator that rejects what `BudgetRequest` rejects, with its message."""

    def check(value: Any) -> Any:
        try:
            BudgetRequest(**{field: value})
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(check)


class BackboneEntry(_Strict):
    """Which vision-language model, which weights if not its default ones, and how they are packed and placed.

    A field with a description is also a flag of the command line.
    """

    name: _BackboneName
    weights: str | None = Field(
        default=None, description="Folder or hub repository in place of the default; or random."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub repository.")
    quantize: Literal["4bit", "8bit"] | None = Field(default=None, description="Pack weights, to fit a smaller GPU.")
    device_map: Literal["auto"] | None = Field(default=None, description="auto: spread layers over GPUs and CPU.")


class MethodEntry(_Strict):
    """A method and its hyper-parameters."""

    name: _MethodName
    params: dict[str, Any] = Field(default_factory=dict)


class Budgets(_Strict):
    """How many visual tokens: counts or shares removed, one or the other."""

    keep: Annotated[list[Annotated[int, Field(strict=True), _valid_budget("keep")]], Field(min_length=1)] | None = None
    prune_rate: Annotated[list[Annotated[float, _valid_budget("prune_rate")]], Field(min_length=1)] | None = None
    kind: Literal["mean", "final"] = Field(default="mean", description="In-LLM budgets: layer mean, or what is left.")

    @model_validator(mode="after")
    def _one_form(self) -> Budgets:
        if (self.keep is None) == (self.prune_rate is None):
            raise ValueError("give either keep (counts) or prune_rate (shares removed)")
        return self

    def requests(self) -> list[BudgetRequest]:
        """Return the budgets in order."""
        if self.keep is not None:
            return [BudgetRequest(keep=keep) for keep in self.keep]
        return [BudgetRequest(prune_rate=rate) for rate in self.prune_rate or []]


class Protocol(_Strict):
    """Everything between image and score that is not the method, and how many samples are answered at once.

    A field with a description is also a flag of the command line.
    """

    prompt: Literal["default", "template", "vicuna_v1"] = Field(
        default="default", description="Conversation; by default the backbone's own."
    )
    ocr: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Type of the weights.")
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="Attention kernel.")
    batch_size: Annotated[Literal["auto"] | int, BeforeValidator(_batch_size)] = Field(
        default="auto", description="Samples answered at once: a number, or auto."
    )
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Answer at least so many samples a task, in whole groups."
    )
    anyres: Literal["per-view", "global"] = Field(
        default="per-view", description="LLaVA-NeXT: budget per view, or over all views."
    )
    newline: Literal["keep", "drop"] = Field(default="drop", description="LLaVA-NeXT: newlines beside selected tokens.")
    min_pixels: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Qwen2.5-VL: smaller images are enlarged."
    )
    max_pixels: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Qwen2.5-VL: larger images are shrunk."
    )


class Manifest(_Strict):
    """A comparison: one backbone, several methods at several budgets on several tasks."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    backbone: Annotated[BackboneEntry, BeforeValidator(_expand_name)]
    methods: list[Annotated[MethodEntry, BeforeValidator(_expand_name)]] = Field(min_length=1)
    budgets: Budgets | None = None
    tasks: list[_TaskName] = Field(default_factory=lambda: list(tasks.TASKS), min_length=1)
    protocol: Protocol = Protocol()

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        family = backbones.find(self.backbone.name)
        self._no_setting_without_effect(family)
        if self.budgets is None and any(method.name != "none" for method in self.methods):
            raise ConfigError("budgets: every method but 'none' needs one; give keep: [..] or prune_rate: [..]")
        most = family.num_visual
        for keep in (self.budgets.keep or []) if self.budgets else []:
            if most is not None and keep > most:
                raise ConfigError(f"--keep: {keep} is more than the {most} visual tokens of {self.backbone.name}")
        return self

    def budget_requests(self, method: str) -> list[BudgetRequest]:
        """Return the budgets a method runs at; the unpruned backbone has one, everything."""
        return [EVERYTHING] if method == "none" or self.budgets is None else self.budgets.requests()

    def _no_setting_without_effect(self, family: backbones.Family) -> None:
        name, protocol = self.backbone.name, self.protocol
        for setting, usual in (("anyres", "per-view"), ("newline", "drop")):
            if not family.tiles and getattr(protocol, setting) != usual:
                raise ConfigError(f"protocol.{setting}: {name} has one view and no tiles; remove it")
        for setting in ("min_pixels", "max_pixels"):
            if not family.native_resolution and getattr(protocol, setting) is not None:
                raise ConfigError(f"protocol.{setting}: {name} reads images at a size of its own; remove it")
        if (protocol.min_pixels or 0) > (protocol.max_pixels or float("inf")):
            raise ConfigError(
                f"protocol: min_pixels {protocol.min_pixels} is more than max_pixels {protocol.max_pixels}"
            )
        if protocol.prompt == "vicuna_v1" and family.prompt != "vicuna_v1":
            raise ConfigError(f"protocol.prompt: vicuna_v1 is LLaVA-1.5's conversation, {name} has another; remove it")
