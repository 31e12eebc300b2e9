"""From flags to a manifest: flags describe one cell, a file many, and both become the same `Manifest`. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from dpbench import backbones, registry
from dpbench.budget import BudgetRequest
from dpbench.cli.flags import Given
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.manifest.reading import load_manifest, make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.tasks.data.root import require_root, toy_data_root


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFlags:
    """What describes cells on the command line; None or empty where it was not given.

    Attributes:
        methods: names.
        params: hyper-parameters, as name=value.
        backbone: its name.
        keep: counts of visual tokens.
        prune_rate: shares of visual tokens to remove.
        budget_kind: what budgets count inside the LLM.
        tasks: names.
        backbone_fields: fields of `BackboneEntry`.
        protocol: fields of `Protocol`.
    """

    methods: Sequence[str] = ()
    params: Sequence[str] = ()
    backbone: str | None = None
    keep: Sequence[int] = ()
    prune_rate: Sequence[float] = ()
    budget_kind: str | None = None
    tasks: Sequence[str] | None = None
    backbone_fields: Given = field(default_factory=dict)
    protocol: Given = field(default_factory=dict)

    def budgets(self) -> dict[str, Any]:
        """Return the manifest's entry `budgets`, empty if no budget was given.

        Raises:
            ConfigError: a count and a rate were given, or one is out of range.
        """
        for keep, rate in zip_longest(self.keep, self.prune_rate):
            BudgetRequest(keep, rate)  # raises if one is out of range, or if both are given
        given = {"keep": list(self.keep), "prune_rate": list(self.prune_rate)}
        budgets: dict[str, Any] = {name: values for name, values in given.items() if values}
        return budgets | ({"kind": self.budget_kind} if budgets and self.budget_kind else {})

    def fields(self) -> dict[str, Any]:
        """Return the manifest's entries that may come on top of a file's: tasks and protocol."""
        tasks = {} if self.tasks is None else {"tasks": list(self.tasks)}
        return {**tasks, "protocol": parse_protocol(self.protocol)}


def parse_protocol(given: Given) -> dict[str, Any]:
    """Return fields of a protocol, a batch size that is a number as a number."""
    size = str(given.get("batch_size", ""))
    return dict(given) | ({"batch_size": int(size)} if size.isascii() and size.isdecimal() else {})


def split_names(given: Iterable[str]) -> list[str]:
    """Return the parts of an option that may come several times or hold several values separated by commas."""
    return [part.strip() for entry in given for part in entry.split(",") if part.strip()]


def split_numbers(flag: str, given: Iterable[str], kind: type[int] | type[float]) -> list[Any]:
    """Return the numbers of an option that may come several times or hold several values separated by commas.

    Raises:
        ConfigError: a value is no such number.
    """
    numbers = []
    for part in split_names(given):
        try:
            numbers.append(kind(part))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{flag}: {part!r} is not {what}; separate several values by commas") from None
    return numbers


def parse_bytes(flag: str, text: str) -> int:
    """Return how many bytes a size is, as "4GiB", "500MB" or "0".

    Raises:
        ConfigError: it is not a size.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"{flag}: {text!r} is not a size; give one as 4GiB, 500MB or 0") from None


def build_manifest(path: Path | None, flags: CellFlags) -> Manifest:
    """Return the manifest that a file, or flags alone, describe; flags override what a file says.

    With `--backbone` the file is run on another backbone; see `_on_backbone`. Budgets that are given as flags are
    counted on that backbone as they are.

    Raises:
        ConfigError: neither was given, or a flag has no effect on the file.
    """
    if path is None:
        return _from_flags_alone(flags)
    if flags.params:
        raise ConfigError(f"--param sets the one method of a run without a manifest; set it in {path}, under methods")
    loaded = _choose_backbone(load_manifest(path), flags.backbone)
    data = loaded.model_dump(exclude_none=True)
    if flags.backbone is not None and flags.backbone != loaded.backbone.name:
        data |= _on_backbone(flags.backbone, loaded)
    data |= _override_grid(path, data, flags)
    added = flags.fields()
    data |= added | {"protocol": data["protocol"] | added["protocol"]}
    if flags.backbone_fields and loaded.more_backbones:
        name = next(iter(flags.backbone_fields)).replace("_", "-")
        raise ConfigError(f"--{name}: {path} has several backbones; name the one that is meant with --backbone")
    data["backbone"] |= flags.backbone_fields
    return _make_manifest(data, source=str(path))


def _choose_backbone(loaded: Manifest, backbone: str | None) -> Manifest:
    """Return the part of a manifest that runs on a backbone it lists; else the manifest, or its first part."""
    if backbone is None:
        return loaded
    parts = loaded.parts()
    return next((part for part in parts if part.backbone.name == backbone), parts[0])


def _override_grid(path: Path, data: Mapping[str, Any], flags: CellFlags) -> dict[str, Any]:
    """Return the methods and budgets of a manifest that flags replace.

    A method that the manifest lists, once or several times, keeps its parameters and seeds; another has its defaults.

    Raises:
        ConfigError: a budget for nothing but the unpruned backbone, or a kind of budget without budgets.
    """
    changed: dict[str, Any] = {}
    if flags.methods:
        listed = [entry for entry in data["methods"] if entry["name"] in flags.methods]
        known = {entry["name"] for entry in listed}
        changed["methods"] = [*listed, *({"name": name} for name in dict.fromkeys(flags.methods) if name not in known)]
    names = {entry["name"] for entry in changed.get("methods", data["methods"])}
    if budgets := flags.budgets():
        _refuse_unused_budget(names)
        kind = (data.get("budgets") or {}).get("kind")
        changed["budgets"] = ({"kind": kind} if kind else {}) | budgets
    elif flags.budget_kind:
        if not data.get("budgets"):
            raise ConfigError(f"--budget-kind: {path} has no budgets; give --keep K or --prune-rate R as well")
        changed["budgets"] = data["budgets"] | {"kind": flags.budget_kind}
    return changed


def _refuse_unused_budget(names: Collection[str]) -> None:
    if set(names) == {"none"}:
        raise ConfigError("--method none keeps every visual token; drop --keep and --prune-rate")


def _on_backbone(backbone: str, loaded: Manifest) -> dict[str, Any]:
    """Return what changes when a manifest is run on another backbone than its own.

    Budgets that are counts become the same share of the other's visual tokens, where both have a fixed number of them;
    scorers belong to a backbone, so the one that ships for the other is taken; of weights, the default ones; of the
    protocol, what the other backbone has no use for is removed. A method that the other backbone cannot serve is named
    on stderr and skipped, and so is a published protocol that it does not have.
    """
    old, new = backbones.find(loaded.backbone.name).num_visual, backbones.find(backbone).num_visual
    methods = [
        {"name": entry.name, "params": {name: value for name, value in entry.params.items() if name != "checkpoint"}}
        for entry in loaded.methods
    ]
    methods = [entry for entry in methods if _is_served(entry, backbone)]
    changed: dict[str, Any] = {
        "backbone": {"name": backbone},
        "methods": methods,
        "protocol": _protocol_on(backbone, loaded),
    }
    if loaded.budgets and loaded.budgets.keep and old and new:
        budgets = loaded.budgets.model_dump(exclude_none=True)
        changed["budgets"] = budgets | {"keep": [max(1, round(keep * new / old)) for keep in budgets["keep"]]}
    return changed


def _protocol_on(backbone: str, loaded: Manifest) -> dict[str, Any]:
    """Return a manifest's protocol without the fields that have no effect on another backbone."""
    family, protocol = backbones.find(backbone), loaded.protocol.model_dump(exclude_none=True)
    without_effect = {
        "grids": not family.tiles,
        "image_aspect": family.image_aspect is None,
        "min_pixels": family.pixels is None,
        "max_pixels": family.pixels is None,
    }
    if protocol["preset"] == "published" and family.paper_table is None:
        print(f"no table of the paper measures {backbone}: it runs under its own protocol", file=sys.stderr)
        protocol["preset"] = "lmms-eval"
    return {name: value for name, value in protocol.items() if not without_effect.get(name)}


def _is_served(entry: Mapping[str, Any], backbone: str) -> bool:
    try:
        registry.load(entry["name"], entry["params"]).files(backbone)
    except UnsupportedError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return False
    return True


def _from_flags_alone(flags: CellFlags) -> Manifest:
    """Return the manifest of a run that flags alone describe, named after backbone, methods and budgets."""
    if not flags.methods or flags.backbone is None:
        missing = "--method" if not flags.methods else "--backbone"
        raise ConfigError(f"{missing} is missing; give a manifest, or --method, --backbone and --keep or --prune-rate")
    budgets = flags.budgets()
    for method in flags.methods:
        registry.find(method)
    if budgets:
        _refuse_unused_budget(flags.methods)
    elif pruning := next((method for method in flags.methods if method != "none"), None):
        raise ConfigError(f"--method {pruning} needs a budget; give --keep K or --prune-rate R")
    parts = (flags.backbone, *flags.methods, *flags.keep, *flags.prune_rate)
    return from_flags("-".join(map(str, parts)), flags, flags.methods)


def from_flags(name: str, flags: CellFlags, methods: Sequence[str]) -> Manifest:
    """Return the manifest of these methods under what flags describe.

    Raises:
        ConfigError: flags that do not go together.
    """
    params = registry.parse_params(list(flags.params))
    if params and len(methods) != 1:
        raise ConfigError("--param belongs to one method; give one --method, or a manifest")
    data: dict[str, Any] = {
        "name": name,
        "backbone": {"name": flags.backbone, **flags.backbone_fields},
        "methods": [{"name": method, "params": params} for method in methods],
    }
    if budgets := flags.budgets():
        data["budgets"] = budgets
    return _make_manifest(data | flags.fields(), source="command line")


def _make_manifest(data: Mapping[str, Any], *, source: str) -> Manifest:
    """Return the manifest of flags; a complaint about a field that a flag sets names the flag.

    Raises:
        ConfigError: one sentence on the first thing wrong.
    """
    try:
        return make_manifest(data, source=source)
    except ConfigError as error:
        found = re.match(r"(?:protocol|backbone)\.(\w+): (.*)", str(error), re.DOTALL)
        if found is None:
            raise
        raise ConfigError(f"--{found[1].replace('_', '-')}: {found[2]}") from None


def find_data_root(manifest: Manifest, given: Path | None) -> Path | None:
    """Return where a manifest's data lies, or None for the hub's cache.

    As given; else, for toy-llava, the mirror inside the package; else what DPBENCH_DATA says.

    Raises:
        ConfigError: the folder given does not exist.
    """
    if given is None and manifest.backbone.name == "toy-llava":
        return toy_data_root()
    return require_root(given)
