"""Derive command-line flags from pydantic models: every field with a description becomes a flag."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from types import MappingProxyType, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Given = Mapping[str, Any]
"""The values given on the command line for fields of a model, by field name."""
Command = TypeVar("Command", bound=Callable[..., None])


def with_flags(
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    panels: Mapping[str, str] | None = None,
    **models: type[BaseModel],
) -> Callable[[Command], Command]:
    """Replace parameters of a command by the flags of a model; the command receives a `Given` for each.

    Args:
        only: fields that become flags; all by default.
        without: fields that do not.
        panels: heading of the help that a field's flag stands under, by field; that of "" for all others.
        models: by the name of the parameter they replace.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        flags = {name: flags_of(model, only, without, panels or {}) for name, model in models.items()}
        parameters = [
            flag for parameter in signature.parameters.values() for flag in flags.get(parameter.name, [parameter])
        ]

        @functools.wraps(command)
        def run(**options: Any) -> None:
            for name, group in flags.items():
                values = {flag.name: options.pop(flag.name) for flag in group}
                options[name] = {field: value for field, value in values.items() if value is not None}
            command(**options)

        keyword = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = signature.replace(parameters=keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
        return run  # type: ignore[return-value]

    return decorate


def flags_of(
    model: type[BaseModel],
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    panels: Mapping[str, str] = MappingProxyType({}),
) -> list[Parameter]:
    """Return a keyword parameter for every described field of a model, with default None."""
    other = panels.get("")
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(field, panels.get(name, other)))
        for name, field in model.model_fields.items()
        if field.description and (only is None or name in only) and name not in without
    ]


def _annotation(field: FieldInfo, panel: str | None) -> Any:
    """Return a flag's type and help; everything except numbers, switches and choices is text."""
    kinds = _flatten(field.annotation)
    is_simple = len(kinds) == 1 and (kinds[0] in (int, float, bool) or get_origin(kinds[0]) is Literal)
    kind = kinds[0] if is_simple else str
    return Annotated[
        kind | None,
        typer.Option(*_other_name(field), help=field.description, show_default=False, rich_help_panel=panel),
    ]


def _other_name(field: FieldInfo) -> tuple[str, ...]:
    """Return the flag that a field declares in place of its own name, if it does."""
    extra = field.json_schema_extra
    return (str(extra["flag"]),) if isinstance(extra, dict) and "flag" in extra else ()


def _flatten(annotation: Any) -> list[Any]:
    """Return the members of a union of types, None and constraints left out."""
    if get_origin(annotation) is Annotated:
        return _flatten(get_args(annotation)[0])
    if get_origin(annotation) is not Literal and get_args(annotation):
        return [kind for member in get_args(annotation) for kind in _flatten(member)]
    return [] if annotation is NoneType else [annotation]
