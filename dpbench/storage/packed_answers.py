"""A sample of a run's journals in one small file, so that a page has samples where the journals are not.

`answers.parquet` lies in the run folder and is committed with the records: of every cell up to `PER_CELL` answers,
evenly spaced over the split, so that all cells of a benchmark have the same ones. `pandas.read_parquet` reads it. No
torch.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench.errors import RecordError
from dpbench.storage import files, journal, record
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "answers.parquet"
PER_CELL = 200
"""Answers per cell: about a megabyte for 500 cells of 144 visual tokens."""

_SCHEMA = b"journal_schema"
_LEVEL = 19
"""zstd's, from which on files hardly shrink."""


def pack(folder: Path) -> Path:
    """Write `answers.parquet` of a run from its journals; a cell whose journal is gone keeps what the file has of it.

    Raises:
        RecordError: a journal or the file cannot be read.
    """
    ids = [row.cell_id for row in record.read(folder / "records.jsonl", Record)]
    cells = load(folder, ids)
    for name in ids:
        path = folder / "samples" / f"{name}.jsonl"
        if path.is_file():
            cells[name] = choose(journal.Journal(path).answers.values())
    if cells:
        files.replace(folder / NAME, _to_bytes(cells))
    return folder / NAME


def choose(answers: Iterable[Answer]) -> list[Answer]:
    """Return up to `PER_CELL` answers, evenly spaced over the samples, by their number."""
    ordered = sorted(answers, key=lambda answer: (answer.doc_id, answer.prompt_hash))
    count = min(PER_CELL, len(ordered))
    return [ordered[at * len(ordered) // count] for at in range(count)]


def load(folder: Path, cell_ids: Sequence[str]) -> dict[str, list[Answer]]:
    """Return the packed answers of these cells, by cell id; nothing without the file.

    Raises:
        RecordError: the file cannot be read, or holds answers of another schema.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    path, cells = folder / NAME, defaultdict(list)
    if path.is_file():
        table = _read(path)
        wanted = pc.is_in(table["cell"], pa.array(cell_ids, pa.string()))
        for row in table.filter(wanted).to_pylist():
            cells[row.pop("cell")].append(_to_answer(row, path))
    return dict(cells)


def _to_bytes(cells: Mapping[str, Sequence[Answer]]) -> bytes:
    """Return the file's bytes; the same answers give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = sorted(cells, key=lambda name: (cells[name][0].task if cells[name] else "", name))
    rows = [{"cell": name, **_to_row(answer)} for name in order for answer in cells[name]]
    schema = pa.schema([("cell", pa.string()), *_columns().items()], metadata={_SCHEMA: str(journal.SCHEMA).encode()})
    stream = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, stream, compression="zstd", compression_level=_LEVEL)
    return stream.getvalue()


def _columns() -> dict[str, Any]:
    """Return the type of every column that holds a field of an answer."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "bool": pa.bool_()}
    special = {
        "scores": pa.string(),
        "visual_tokens": pa.list_(pa.int32()),
        "kept": pa.list_(pa.string()),
        "failure": pa.string(),
    }
    return {
        field.name: special[field.name] if field.name in special else types[str(field.type)]
        for field in fields(Answer)
        if field.name != "schema"
    }


def _to_row(answer: Answer) -> dict[str, Any]:
    row = {**asdict(answer), "scores": json.dumps(answer.scores, sort_keys=True), "ms": round(answer.ms, 1)}
    return {name: value for name, value in row.items() if name != "schema"}


def _to_answer(row: Mapping[str, Any], path: Path) -> Answer:
    try:
        lists = {name: tuple(row[name]) for name in ("visual_tokens", "kept")}
        return Answer(**{**row, **lists, "scores": json.loads(row["scores"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    schema = (table.schema.metadata or {}).get(_SCHEMA, b"none").decode()
    if schema != str(journal.SCHEMA):
        raise RecordError(f"{path}: answers of schema {schema}, this dpbench reads {journal.SCHEMA}; delete the file")
    if missing := {"cell", *_columns()} - set(table.column_names):
        raise _damaged(path, f"no column {min(missing)}")
    return table


def _damaged(path: Path, reason: object) -> RecordError:
    text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return RecordError(f"{path} cannot be read ({text}); delete it, a run writes it anew from its journals")
