"""What each benchmark's data must look like: from the table of tasks, `expected.yaml` and the toy mirrors' hashes."""

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
    """What one split should be.

    Attributes:
        columns: name -> kind, as `kind` returns it; "id" is a string or an integer.
        rows: number of rows, None if unknown.
        revision: the expected one, None if any is fine.
        sha256: path inside the repository -> hash, for the files whose hash is known.
    """

    columns: Mapping[str, str]
    rows: int | None
    revision: str | None
    sha256: Mapping[str, str]

    @property
    def images(self) -> str | None:
        """Return the image column, or None if there is none."""
        return next((name for name, kind in self.columns.items() if "image" in kind), None)


def expected(task: Task, config: str, origin: Origin | None) -> Expected:
    """Return what a split of this origin should be; data of unknown origin should have the hub's number of rows."""
    listed, key = _load_expected(), f"{task.repository}/{config}/{task.split}"
    hashes = {path: sha for path, sha in origin.files.items() if sha} if origin is not None else {}
    columns = listed["columns"][key]
    if origin is None or origin.organisation != TOY:
        rows = task.num_images if config == task.images else task.num_rows
        return Expected(columns, rows, task.revision, hashes)
    toy = listed[TOY]
    if origin.revision == toy["revision"]:
        hashes |= _toy_hashes(task.repository)
    return Expected(columns, toy["rows"].get(key), toy["revision"], hashes)


def kind(column: pa.DataType) -> str:
    """Return the kind of a column's values, whatever width or encoding they are stored in."""
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


def is_kind(found: str, expected: str) -> bool:
    """Return True if a column's kind is the expected one."""
    return found in ("string", "int") if expected == "id" else found == expected


@cache
def _load_expected() -> Mapping[str, Any]:
    listed: Mapping[str, Any] = yaml.safe_load(
        (files("dpbench.tasks.data") / "expected.yaml").read_text(encoding="utf-8")
    )
    return listed


def _toy_hashes(repository: str) -> dict[str, str]:
    lines = (files("dpbench") / "toy" / "data" / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    entries = (line.split("  ", 1) for line in lines)
    start = f"data/{repository}/"
    return {path.removeprefix(start): sha for sha, path in entries if path.startswith(start)}
