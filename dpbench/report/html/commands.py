"""The command line that runs a recorded cell again.

Flags are read off the fields that declare them, without typer: a field with a description is a flag of its name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dpbench.manifest.cell import PROTOCOL_FIELDS, WEIGHTS_FIELDS
from dpbench.manifest.schema import BackboneEntry, Protocol, resolve
from dpbench.storage import plain_yaml

_FIELDS: Mapping[str, FieldInfo] = {
    **{name: BackboneEntry.model_fields[name] for name in WEIGHTS_FIELDS},
    **{name: Protocol.model_fields[name] for name in PROTOCOL_FIELDS},
}
"""What identifies a cell besides its backbone, method, budget, task and seed."""


def command(cell: Mapping[str, Any], folder: Path) -> str:
    """Return the command that runs one cell again.

    Args:
        cell: as in its record.
        folder: the run folder; its manifest is named if flags cannot describe the cell.
    """
    changed = _changed_fields(cell)
    if _has_flags(cell, changed):
        words = [*_cell_flags(cell), *(word for name, value in changed.items() for word in _flag(name, value))]
    else:
        words = [str(folder / "manifest.yaml"), "--tasks", cell["task"]]
    return shlex.join(["dpbench", "run", *words])


def _changed_fields(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of placement and protocol that differ from the defaults of `dpbench run`."""
    usual = resolve(Protocol(), cell["backbone"])
    defaults = {name: getattr(usual, name, field.default) for name, field in _FIELDS.items()}
    return {name: cell[name] for name, default in defaults.items() if cell[name] != default}


def _has_flags(cell: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Return True if flags describe the cell: no flag gives another seed, or a budget kind to the unpruned model."""
    is_plain = cell["seed"] == 0 and (cell["method"] != "none" or cell["budget_kind"] == "mean")
    return is_plain and all(_flag(name, value) for name, value in changed.items())


def _cell_flags(cell: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--method", cell["method"])
    for name, value in cell["params"].items():
        yield from ("--param", f"{name}={_yaml(value)}")
    yield from ("--backbone", cell["backbone"])
    for name in ("keep", "prune_rate"):
        if cell[name] is not None:
            yield from (f"--{name.replace('_', '-')}", str(cell[name]))
    if cell["budget_kind"] != "mean":
        yield from ("--budget-kind", cell["budget_kind"])
    yield from ("--tasks", cell["task"])


def _flag(name: str, value: Any) -> tuple[str, ...]:
    """Return the flag that sets a field, or nothing if there is none."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{flag}" if value else f"--no-{flag}",)
    return (f"--{flag}", str(value)) if _FIELDS[name].description else ()


def _yaml(value: Any) -> str:
    """Return a parameter as `--param` reads it back."""
    return plain_yaml.dump(value, one_line=True).removesuffix("\n").removesuffix("\n...")
