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
from dpbench.manifest.presets import Preset, preset_values


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _expand_preset(value: object) -> object:
    """Expand a bare name of a preset to `{preset: name}`."""
    return {"preset": value} if isinstance(value, str) else value


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


def _default_as_none(value: object) -> object:
    """Read "default", which earlier versions wrote, as a field that is not given."""
    return None if value == "default" else value


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
    """A method, its hyper-parameters, and its seeds if not the protocol's.

    `{backbone}` in a parameter that is text stands for the backbone's name, as in `checkpoint: scorers/{backbone}`.
    """

    name: _MethodName
    params: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[list[int], Field(min_length=1)] | None = None

    def params_on(self, backbone: str) -> dict[str, Any]:
        """Return the hyper-parameters with the backbone's name filled in."""
        return {
            name: value.replace("{backbone}", backbone) if isinstance(value, str) else value
            for name, value in self.params.items()
        }


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

    A field that is None follows the preset, or the backbone's family; `presets.resolve` fills it in. A field with a
    description is also a flag of the command line.
    """

    preset: Preset = Field(
        default="lmms-eval",
        description="Values of what is not given: lmms-eval's, LLaVA's own, or those of the paper's table.",
        json_schema_extra={"flag": "--protocol"},
    )
    prompt: Annotated[Literal["template", "vicuna_v1"] | None, BeforeValidator(_default_as_none)] = Field(
        default=None, description="Conversation; by default the backbone's own."
    )
    ocr: bool | None = Field(
        default=None, description="TextVQA: OCR tokens in the prompt; by default with LLaVA-1.5 only."
    )
    wording: Literal["lmms-eval", "llava"] | None = Field(
        default=None, description="Whose wording of MMBench, and whose letter case of questions."
    )
    reading: Literal["first-word", "llava"] | None = Field(
        default=None, description="How letters, yes and no are read (`dpbench list tasks --reading`), or as LLaVA does."
    )
    image_aspect: Literal["pad", "crop"] | None = Field(
        default=None, description="LLaVA-1.5: pad images to a square, or crop them to one."
    )
    grids: Literal["transformers", "llava"] | None = Field(
        default=None, description="LLaVA-NeXT: the wide or the tall grid where both fit an image equally well."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="Type of the weights.")
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
    """A comparison: several methods at several budgets on several tasks, on one backbone or on several in turn.

    A list under `backbone` is read as the first backbone and `more_backbones`. `purpose` is the command that the
    manifest is written for, whose steps `dpbench plan` prints; any other command takes it too.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    purpose: Literal["run", "profile", "visualize"] = "run"
    backbone: Annotated[BackboneEntry, BeforeValidator(_expand_name)]
    more_backbones: list[Annotated[BackboneEntry, BeforeValidator(_expand_name)]] = Field(default_factory=list)
    methods: list[Annotated[MethodEntry, BeforeValidator(_expand_name)]] = Field(min_length=1)
    budgets: Budgets | None = None
    tasks: list[_TaskName] = Field(default_factory=lambda: list(tasks.TASKS), min_length=1)
    protocol: Annotated[Protocol, BeforeValidator(_expand_preset)] = Protocol()

    @model_validator(mode="before")
    @classmethod
    def _split_backbones(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(listed := data.get("backbone"), list) and listed:
            return {**data, "backbone": listed[0], "more_backbones": listed[1:]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.budgets is None and any(method.name != "none" for method in self.methods):
            raise ConfigError("budgets: every method but 'none' needs one; give keep: [..] or prune_rate: [..]")
        names = [entry.name for entry in (self.backbone, *self.more_backbones)]
        if len(set(names)) < len(names):
            raise ConfigError(f"backbone: {max(names, key=names.count)} is listed twice; remove one")
        for name in names:
            self._consistent_on(name)
        return self

    def _consistent_on(self, backbone: str) -> None:
        family = backbones.find(backbone)
        self._no_setting_without_effect(backbone, family)
        resolve(self.protocol, backbone)
        most = family.num_visual
        for keep in (self.budgets.keep or []) if self.budgets else []:
            if most is not None and keep > most:
                raise ConfigError(f"--keep: {keep} is more than the {most} visual tokens of {backbone}")

    def parts(self) -> list[Manifest]:
        """Return one manifest for each backbone, in order; they share the name, and so the run folder."""
        entries = (self.backbone, *self.more_backbones)
        return [self.model_copy(update={"backbone": entry, "more_backbones": []}) for entry in entries]

    def resolved_protocol(self) -> Protocol:
        """Return the protocol on the first backbone, with a value in every field that applies to it."""
        return resolve(self.protocol, self.backbone.name)

    def budget_requests(self, method: str) -> list[BudgetRequest]:
        """Return the budgets a method runs at; the unpruned backbone has one, everything."""
        return [EVERYTHING] if method == "none" or self.budgets is None else self.budgets.requests()

    def _no_setting_without_effect(self, name: str, family: backbones.Family) -> None:
        protocol = self.protocol
        for setting, usual in (("anyres", "per-view"), ("newline", "drop")):
            if not family.tiles and getattr(protocol, setting) != usual:
                raise ConfigError(f"protocol.{setting}: {name} has one view and no tiles; remove it")
        if not family.tiles and protocol.grids is not None:
            raise ConfigError(f"protocol.grids: {name} has one view and no tiles; remove it")
        if family.image_aspect is None and protocol.image_aspect is not None:
            raise ConfigError(f"protocol.image_aspect: {name} reads images of any shape; remove it")
        for setting in ("min_pixels", "max_pixels"):
            if not family.native_resolution and getattr(protocol, setting) is not None:
                raise ConfigError(f"protocol.{setting}: {name} reads images at a size of its own; remove it")
        if (protocol.min_pixels or 0) > (protocol.max_pixels or float("inf")):
            raise ConfigError(
                f"protocol: min_pixels {protocol.min_pixels} is more than max_pixels {protocol.max_pixels}"
            )
        if protocol.prompt == "vicuna_v1" and family.prompt != "vicuna_v1":
            raise ConfigError(f"protocol.prompt: vicuna_v1 is the conversation of LLaVA on Vicuna; {name} has another")


def resolve(protocol: Protocol, backbone: str) -> Protocol:
    """Return a protocol with the values that its preset and the backbone's family give to fields that are None.

    A pixel bound that is given moves the other one's default with it, where they would cross.

    Raises:
        ConfigError: the preset is "published" and no table of the paper measures the backbone.
    """
    values = preset_values(protocol.preset, backbones.find(backbone), backbone)
    if values["min_pixels"] is not None:
        values["min_pixels"] = min(values["min_pixels"], protocol.max_pixels or values["min_pixels"])
        values["max_pixels"] = max(values["max_pixels"], protocol.min_pixels or values["max_pixels"])
    return protocol.model_copy(
        update={name: value for name, value in values.items() if getattr(protocol, name) is None}
    )
