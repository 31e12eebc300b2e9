"""Read manifests; an error names the line in the file. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dpbench.errors import ConfigError, did_you_mean, format_value
from dpbench.manifest.schema import BackboneEntry, Budgets, Manifest, MethodEntry, Protocol
from dpbench.storage import plain_yaml
from dpbench.storage.exact_numbers import find_inexact


def shipped() -> dict[str, Path]:
    """Return the manifests that come with dpbench, by name: from the wheel, or from a source checkout."""
    inside = Path(str(files("dpbench"))) / "manifests"
    folder = inside if inside.is_dir() else Path(str(files("dpbench"))).parent / "manifests"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest file, or a shipped manifest by its name.

    Raises:
        ConfigError: it is missing, not YAML, or has a wrong key or value; names the line.
    """
    path = _existing(path)
    try:
        data, node = plain_yaml.load(_text(path))
    except plain_yaml.YamlError as error:
        raise ConfigError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from None
    _refuse_keys_that_are_no_text(path, node)
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: a manifest is a mapping with name, backbone, methods, ..., found {kind}")
    return make_manifest(data, source=str(path), node=node)


def _refuse_keys_that_are_no_text(path: Path, node: yaml.Node | None) -> None:
    """Refuse keys such as 1, ~ and true, which records, being JSON, would hold as text."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: the key {text} is not text; put it in quotes")
            _refuse_keys_that_are_no_text(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_keys_that_are_no_text(path, item)


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
        raise ConfigError(f"{path} is not a manifest: it has {size:,} bytes, a manifest takes a few thousand")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a manifest: byte {error.start} is not UTF-8 text; save it as UTF-8") from None


def make_manifest(data: Mapping[str, Any], *, source: str, node: yaml.Node | None = None) -> Manifest:
    """Check a manifest's content.

    Raises:
        ConfigError: one sentence on the first thing wrong, with its line where there is a file.
    """
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        text = _complaint(dict(first), in_file=node is not None)
        where = "" if text.startswith("--") else _place(source, first["loc"], node)
        raise ConfigError(f"{where}{text}") from None
    except ConfigError as error:
        if node is None:
            raise
        key, _, text = str(error).partition(": ")
        loc = ("budgets", "keep") if key == "--keep" else tuple(key.split("."))
        raise ConfigError(f"{_place(source, loc, node)}{text}") from None
    if found := find_inexact(data, manifest.model_dump()):
        raise ConfigError(f"{_place(source, found[0], node)}must be a finite number, got {format_value(found[1])}")
    return manifest


def _place(source: str, loc: tuple[int | str, ...], node: yaml.Node | None) -> str:
    """Return the beginning of an error sentence: the keys that lead to a value, and its line where there is a file."""
    path = ".".join(map(_format_key, loc))
    if node is None:
        return f"{path}: " if loc else ""
    return f"{source}:{_line(node, loc)}: {path}: "


def _format_key(key: int | str) -> str:
    """Return a key as text on one line; one that cannot be printed as it is, such as a line break, is quoted."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 120 else format_value(text)


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
    if text.startswith("--"):  # an unknown name: the message already starts with its flag
        return text.partition(": ")[2] if in_file else text
    if error["type"] != "extra_forbidden":
        return f"{text}, got {format_value(error['input'])}"
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
