"""Command-line flags derived from models: a field with a description is a flag, so that it is declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Given = Mapping[str, Any]
"""The fields of a model that were given on the command line, by name."""
Command = TypeVar("Command", bound=Callable[..., None])


def with_flags(
    *, only: Collection[str] | None = None, without: Collection[str] = (), **models: type[BaseModel]
) -> Callable[[Command], Command]:
    """Replace parameters of a command by the flags of a model; the command receives what was given, as a `Given`.

    Args:
        only: fields that are flags of this command; all by default.
        without: fields that are not.
        models: by the parameter they replace.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        flags = {name: flags_of(model, only, without) for name, model in models.items()}
        parameters = [flag for own in signature.parameters.values() for flag in flags.get(own.name, [own])]

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
    model: type[BaseModel], only: Collection[str] | None = None, without: Collection[str] = ()
) -> list[Parameter]:
    """Return a parameter for every described field of a model; each is None unless given."""
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(field))
        for name, field in model.model_fields.items()
        if field.description and (only is None or name in only) and name not in without
    ]


def _annotation(field: FieldInfo) -> Any:
    """Return the type of a flag and its help; what is neither number nor one of several words is text."""
    kinds = _flatten(field.annotation)
    is_simple = len(kinds) == 1 and (kinds[0] in (int, float) or get_origin(kinds[0]) is Literal)
    kind = kinds[0] if is_simple else str
    return Annotated[kind | None, typer.Option(help=field.description, show_default=False)]


def _flatten(annotation: Any) -> list[Any]:
    """Return the members of a union of types, None and constraints left out."""
    if get_origin(annotation) is Annotated:
        return _flatten(get_args(annotation)[0])
    if get_origin(annotation) is not Literal and get_args(annotation):
        return [kind for member in get_args(annotation) for kind in _flatten(member)]
    return [] if annotation is NoneType else [annotation]
