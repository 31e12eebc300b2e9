"""A manifest: the YAML file that describes a comparison, and its expansion into cells. No torch.

Command-line flags build the same `Manifest`, so there is one way to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dpbench import backbones, plain_yaml, registry, tasks
from dpbench.errors import ConfigError, did_you_mean, shown

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


def shipped() -> dict[str, Path]:
    """Return the manifests that come with dpbench, by name: from the wheel, or from a source checkout."""
    inside = Path(str(files("dpbench"))) / "manifests"
    folder = inside if inside.is_dir() else Path(str(files("dpbench"))).parent / "manifests"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest file, or a shipped manifest by its name.

    Raises:
        ConfigError: it is not there, is not YAML, or holds a key or value that cannot be; says which line.
    """
    path = _existing(path)
    try:
        data, node = plain_yaml.load(_text(path))
    except plain_yaml.YamlError as error:
        raise ConfigError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: a manifest is a mapping with name, backbone, methods, ..., found {found}")
    return make_manifest(data, source=str(path), node=node)


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    if str(path) in shipped():
        return shipped()[str(path)]
    if path.name in {f"{name}.yaml" for name in shipped()} and path.parent.name in ("manifests", ""):
        return shipped()[path.stem]
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a manifest; give the YAML file itself")
    raise ConfigError(f"there is no manifest {path}; {did_you_mean(path.stem, shipped())}")


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > 4 * plain_yaml.MOST_CHARACTERS:
        raise ConfigError(f"{path} is no manifest: it has {size:,} bytes, a manifest takes a few thousand")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no manifest: byte {error.start} is not UTF-8 text; save it as UTF-8") from None


def make_manifest(data: Mapping[str, Any], *, source: str, node: yaml.Node | None = None) -> Manifest:
    """Check a manifest's content.

    Raises:
        ConfigError: one sentence on the first thing wrong, with its line where there is a file.
    """
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = _place(source, first["loc"], node)
        raise ConfigError(f"{where}{_complaint(dict(first), in_file=node is not None)}") from None
    except ConfigError as error:
        if node is None:
            raise
        key, _, text = str(error).partition(": ")
        loc = ("budgets", "keep") if key == "--keep" else tuple(key.split("."))
        raise ConfigError(f"{_place(source, loc, node)}{text}") from None


def _place(source: str, loc: tuple[int | str, ...], node: yaml.Node | None) -> str:
    if node is None:
        return f"{'.'.join(map(str, loc))}: " if loc else ""
    return f"{source}:{_line(node, loc)}: {'.'.join(map(str, loc))}: "


def _line(node: yaml.Node, loc: tuple[int | str, ...]) -> int:
    """Return the 1-based line of the deepest part of `loc` that is written in the file."""
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            if pair is None:
                break
            node = pair[1] if step != loc[-1] else pair[0]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
    return int(node.start_mark.line) + 1


def _complaint(error: dict[str, Any], *, in_file: bool) -> str:
    if error["type"] == "missing":
        return "it is missing; add it"
    text = str(error["msg"]).removeprefix("Value error, ")
    if text.startswith("--"):  # a name that is not known: the sentence has it, and on the command line its flag
        return text.partition(": ")[2] if in_file else text
    if error["type"] != "extra_forbidden":
        return f"{text}, got {shown(error['input'])}"
    owner = _owner(error["loc"])
    return f"unknown key {error['loc'][-1]!r}; {did_you_mean(str(error['loc'][-1]), owner.model_fields)}"


def _owner(loc: tuple[int | str, ...]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {
        "backbone": BackboneEntry,
        "methods": MethodEntry,
        "budgets": Budgets,
        "protocol": Protocol,
    }
    return sections.get(str(loc[0]), Manifest) if len(loc) > 1 else Manifest
