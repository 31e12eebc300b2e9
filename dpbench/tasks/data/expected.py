"""What each benchmark's data must look like, from the table of tasks, `expected.yaml` and the toy mirrors' hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa
import yaml

from dpbench.tasks import Task
from dpbench.tasks.data.origin import TOY, Origin


@dataclass(frozen=True, slots=True)
class Expected:
    """One split as it should be.

    Attributes:
        columns: name -> kind, as `kind` names them; "id" is a string or an integer.
        rows: how many, None where that is unknown.
        revision: the only right one, None where any will do.
        sha256: path inside the repository -> hash, of the files whose hash is known.
    """

    columns: Mapping[str, str]
    rows: int | None
    revision: str | None
    sha256: Mapping[str, str]

    @property
    def images(self) -> str | None:
        """Return the column that holds images, None if no column does."""
        return next((name for name, holds in self.columns.items() if "image" in holds), None)


def expected(task: Task, config: str, origin: Origin | None) -> Expected:
    """Return what a split should be, given where it says it came from; unknown origins are held to the hub's sizes."""
    known, key = _listed(), f"{task.repository}/{config}/{task.split}"
    hashes = {path: sha for path, sha in origin.files.items() if sha} if origin is not None else {}
    columns = known["columns"][key]
    if origin is None or origin.organisation != TOY:
        rows = task.num_images if config == task.images else task.num_rows
        return Expected(columns, rows, task.revision, hashes)
    toy = known[TOY]
    if origin.revision == toy["revision"]:
        hashes |= _toy_hashes(task.repository)
    return Expected(columns, toy["rows"].get(key), toy["revision"], hashes)


def kind(column: pa.DataType) -> str:
    """Return what a column holds, whatever width or encoding it is stored in."""
    if pa.types.is_dictionary(column):
        return kind(column.value_type)
    if pa.types.is_string(column) or pa.types.is_large_string(column):
        return "string"
    if pa.types.is_integer(column):
        return "int"
    if pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column):
        return f"list[{kind(column.value_type)}]"
    if pa.types.is_struct(column):
        names = sorted(field.name for field in column)
        return "image" if names == ["bytes", "path"] else "{" + ", ".join(names) + "}"
    return str(column)


def fits(found: str, wanted: str) -> bool:
    """Return whether a column's kind is the wanted one."""
    return found in ("string", "int") if wanted == "id" else found == wanted


@cache
def _listed() -> Mapping[str, Any]:
    listed: Mapping[str, Any] = yaml.safe_load(
        (files("dpbench.tasks.data") / "expected.yaml").read_text(encoding="utf-8")
    )
    return listed


def _toy_hashes(repository: str) -> dict[str, str]:
    lines = (files("dpbench") / "toy" / "data" / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    listed = (line.split("  ", 1) for line in lines)
    start = f"data/{repository}/"
    return {path.removeprefix(start): sha for sha, path in listed if path.startswith(start)}
