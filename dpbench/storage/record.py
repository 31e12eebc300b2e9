"""What is left on disk: one record per finished cell, one per profiled cell. Frozen dataclasses, one JSON line each.

Key order is the dataclass's; rows are sorted by cell id when a file is rewritten. What was not measured is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dpbench.errors import RecordError
from dpbench.storage import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished cell.

    Attributes:
        schema: version of this format.
        cell_id: `Cell.id`.
        cell: the whole cell.
        metrics: every number lmms-eval reported for the task, by metric.
        score: the benchmark's score, 0-100 (MME: share of its maximum).
        num_samples: samples scored.
        num_failed: samples without an answer (broken image, too long, out of memory), scored as an empty one.
        visual_tokens_per_layer: mean over samples, one entry per decoder layer.
        feature_cache: "hits", images that were encoded before, for another question or cell, and "encoded".
        wall_s: seconds spent pruning and generating; the encoder, shared by all cells, is not in it.
        finished: UTC, ISO 8601.
        versions: dpbench, lmms-eval, torch, transformers, Python.
        environment: what it ran on, as in `environment.json`.
    """

    schema: int = 2
    cell_id: str
    cell: Mapping[str, Any]
    metrics: Mapping[str, float]
    score: float
    num_samples: int
    num_failed: int
    visual_tokens_per_layer: tuple[float, ...]
    feature_cache: Mapping[str, int]
    wall_s: float
    finished: str
    versions: Mapping[str, str]
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the milliseconds, FLOPs, bytes and joules of one (backbone, method, budget) go, up to the first token.

    A stage is one of preprocess, encode, signals, reduce, splice, prefill, ttft, decode, end_to_end. `reduce` is all
    that a method adds: its decision, `signals` (what it makes the encoder do besides, taken out of encode) and its
    ranking inside the LLM (taken out of prefill); in a CUDA graph these two cannot be told apart and stay where they
    are. A mapping without a key, or an empty one, says that this was not measured.

    Attributes:
        schema: version of this format.
        backbone: its name.
        weights: where they came from; "random" where they mean nothing.
        method: its name.
        params: its hyper-parameters.
        budget: as tables show it.
        configuration: eager, compile or cuda-graph; never mixed in one column.
        batch_size: prompts at once.
        num_images: in each prompt.
        image_hw: pixels of the image, height and width.
        num_visual: visual tokens the LLM reads, mean over its layers.
        visual_tokens_per_layer: the same, layer by layer.
        num_text: positions of the prompt that are no visual token.
        stages_ms: per stage, one value per repetition, in order; decode is per token.
        warmups: repetitions run before and not kept.
        stages_flops: per stage; 2 per multiply-add.
        peak_bytes: per stage, the most memory allocated during it, weights apart.
        weights_bytes: parameters and buffers.
        kv_bytes_per_layer: the cache after prefill.
        joules: per first token, above what the card draws idle ("first_token") and that meanwhile ("idle"); and
            "idle_watts".
        bound_ms: per stage, the least time its FLOPs and bytes allow at the rates in `rates`.
        rates: measured in the same run: matmul FLOP/s and copied bytes/s.
        flags: why a reader should doubt this row: scatter, throttling, other processes.
        monitor: clocks, temperature, power and throttle reasons before, during and after.
        environment: what it ran on; profiles of different environments never share a table.
        started: when its `dpbench profile` began, in UTC; only rows of the same one were timed in turn. None: unknown.
    """

    schema: int = 2
    backbone: str
    weights: str
    method: str
    params: Mapping[str, Any]
    budget: str
    configuration: str
    batch_size: int
    num_images: int
    image_hw: tuple[int, int]
    num_visual: float
    visual_tokens_per_layer: tuple[int, ...]
    num_text: int
    stages_ms: Mapping[str, tuple[float, ...]]
    warmups: int
    stages_flops: Mapping[str, int]
    peak_bytes: Mapping[str, int]
    weights_bytes: int
    kv_bytes_per_layer: tuple[int, ...]
    joules: Mapping[str, float]
    bound_ms: Mapping[str, float]
    rates: Mapping[str, float]
    flags: tuple[str, ...]
    monitor: Mapping[str, Any]
    environment: Mapping[str, Any]
    started: str | None = None


Line = TypeVar("Line", Record, Profile)
_TYPES: Mapping[type, TypeAdapter[Any]] = {Record: TypeAdapter(Record), Profile: TypeAdapter(Profile)}


def append(path: Path, line: Record | Profile) -> None:
    """Add one line to a JSON-lines file; what a kill left of a line before is cut off."""
    _mend(path)
    files.append(path, _encode(line), sync=True)


def _encode(line: Record | Profile) -> bytes:
    return (json.dumps(asdict(line), ensure_ascii=False) + "\n").encode()


def read(path: Path, kind: type[Line]) -> list[Line]:
    """Read a file of records or profiles; a file that is not there holds none, a line a kill cut off is passed over.

    Raises:
        RecordError: it is a folder, or has a line of another schema or without the fields of this one.
    """
    if path.is_dir():
        raise RecordError(f"{path} is a folder, where a file of records is due; move it away")
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    if _whole(last):
        lines.append(last)
    return [_parse(line, kind, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line]


def _whole(last: bytes) -> bool:
    """Tell whether a last line without its end is complete: an editor may have stripped the newline."""
    try:
        return isinstance(json.loads(last), dict)
    except (ValueError, RecursionError):
        return False


def _mend(path: Path) -> None:
    """Cut off what a kill left of a last line, or end it where it is whole."""
    data = path.read_bytes() if path.is_file() else b""
    start = data.rfind(b"\n") + 1
    last = data[start:]
    if last and _whole(last):
        files.append(path, b"\n", sync=True)
    elif last:
        files.replace(path, data[:start])


def _parse(text: bytes, kind: type[Line], where: str) -> Line:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise RecordError(f"{where}: this line is not JSON; delete it and run again") from None
    if not isinstance(data, dict):
        raise RecordError(f"{where}: this line is no record but {type(data).__name__}; delete it and run again")
    version = next(field.default for field in fields(kind) if field.name == "schema")
    if data.get("schema") != version:
        raise RecordError(f"{where}: schema {data.get('schema')!r}, this dpbench reads {version}; move the file away")
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    wrong = (set(data) - names) | (needed - set(data))
    if wrong:
        raise RecordError(f"{where}: fields {sorted(wrong)} are missing or unknown; move the file away")
    try:
        _TYPES[kind].validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{where}: {place}: {first['msg']}; delete the line and run again") from None
    name = str(data.get("cell_id", ""))  # it names a file of the run folder
    if name.startswith("/") or ".." in name.split("/") or {"\\", "\0"} & set(name):
        raise RecordError(f"{where}: cell_id {name[:80]!r} leads out of the run folder; delete the line")
    return kind(**{name: _tupled(value) for name, value in data.items()})


def _tupled(value: Any) -> Any:
    """Turn JSON's lists back into the tuples they were, one level into mappings."""
    if isinstance(value, dict):
        return {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each cell, where cells that differ in hashes and versions only are the same one."""
    latest: dict[str, Record] = {}
    for each in sorted(records, key=lambda record: record.finished):
        same = {name: value for name, value in each.cell.items() if name != "fingerprints"}
        weights = each.cell["fingerprints"].get("weights")
        latest[json.dumps([same, weights], sort_keys=True)] = each
    return list(latest.values())


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Write records sorted by cell id, so that a committed file has readable diffs."""
    rows = sorted(records, key=lambda record: record.cell_id)
    files.replace(path, b"".join(map(_encode, rows)))
