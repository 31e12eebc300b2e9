"""Methods by name, through the entry-point group `dpbench.methods`. Listing imports no method and no torch."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import TypeAdapter, ValidationError

from dpbench.errors import ConfigError, did_you_mean, format_value
from dpbench.storage import plain_yaml
from dpbench.storage.exact_numbers import find_inexact

if TYPE_CHECKING:
    from dpbench.method import Method

GROUP = "dpbench.methods"


@cache
def methods() -> Mapping[str, EntryPoint]:
    """Return the installed methods by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def find(name: str) -> EntryPoint:
    """Return a method's entry point.

    Raises:
        ConfigError: no method of that name is installed.
    """
    if name not in methods():
        raise ConfigError(f"--method: there is no method {name!r}; {did_you_mean(name, methods())}")
    return methods()[name]


def load(name: str, params: Mapping[str, object] | None = None) -> Method:
    """Construct a method with its hyper-parameters, checked and converted by the fields' types.

    Raises:
        ConfigError: unknown method, unknown parameter, a value its field cannot take, or a method whose `spends` is
            none of those that there are.
    """
    method_class = find(name).load()
    fields = {field.name for field in dataclasses.fields(method_class) if field.init}
    for param in params or {}:
        if param not in fields:
            raise ConfigError(f"--param: method {name!r} has no parameter {param!r}; {did_you_mean(param, fields)}")
    try:
        method = _adapter(method_class).validate_python(dict(params or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "parameters"
        raise ConfigError(f"--param: {name}.{where}: {first['msg']}, got {format_value(first['input'])}") from None
    if found := find_inexact(params or {}, {param: getattr(method, param) for param in params or {}}):
        place = ".".join(map(str, found[0]))
        raise ConfigError(f"--param: {name}.{place}: must be a finite number, got {format_value(found[1])}")
    _check_spends(name, method)
    return method


def _check_spends(name: str, method: Method) -> None:
    """Refuse a misspelt `spends`, which would hold the method to no budget at all."""
    from dpbench.method import Spends

    known = get_args(Spends)
    if method.spends not in known:
        hint = did_you_mean(str(method.spends), known)
        raise ConfigError(f"method {name!r}: spends is {format_value(method.spends)}; {hint}")


@cache
def _adapter(method_class: type[Method]) -> TypeAdapter[Method]:
    """Return what checks and converts a method's parameters; a plan loads a method once for every cell."""
    return TypeAdapter(method_class)


def summary(name: str) -> str:
    """Return the first docstring sentence of a method's class, read from its source without importing it."""
    tree = ast.parse(source_path(name).read_text(encoding="utf-8"))
    wanted = methods()[name].attr
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""


def source_path(name: str) -> Path:
    """Return the file a method is written in."""
    try:
        spec = importlib.util.find_spec(find(name).module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"--method: the package of {name!r} is registered but not installed; reinstall it")
    return Path(spec.origin)


def parse_params(pairs: list[str]) -> dict[str, object]:
    """Turn `layer=3` strings into values, read as YAML.

    Raises:
        ConfigError: a pair without "=".
    """
    params = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--param: {pair!r} is not of the form name=value, as in --param layer=3")
        try:
            params[name], _ = plain_yaml.load(value)
        except plain_yaml.YamlError:
            raise ConfigError(f"--param: the value of {name!r} is not YAML: {format_value(value)}") from None
    return params
