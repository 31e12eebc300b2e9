"""Records of finished cells and profiles of timed ones: frozen dataclasses, one JSON line each. No torch.

Keys keep the order of the dataclass; rows are sorted by cell id when a file is rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.errors import ConfigError, RecordError
from dpbench.storage import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished cell.

    Attributes:
        schema: version of this format.
        cell_id: `Cell.id`.
        cell: the whole cell.
        metrics: every number that lmms-eval reported for the task, by metric.
        score: the benchmark's score, 0-100 (MME: share of its maximum).
        num_samples: samples scored.
        num_failed: samples without an answer (broken image, out of memory), scored as an empty answer.
        num_too_long: samples left out of the score for all methods, because they or samples of their group (MME's
            pairs, MMBench's circles) do not fit into the model's context unpruned.
        visual_tokens_per_layer: mean over samples, one entry per decoder layer.
        feature_cache: number of images "encoded", and of "hits", encoded before for another question or cell.
        wall_s: seconds spent pruning and generating; without the encoder, which all cells share.
        finished: UTC, ISO 8601.
        versions: dpbench, lmms-eval, torch, transformers, Python.
        environment: the machine, as in `environment.json`.
    """

    schema: int = 2
    cell_id: str
    cell: Mapping[str, Any]
    metrics: Mapping[str, float]
    score: float
    num_samples: int
    num_failed: int
    num_too_long: int = 0
    visual_tokens_per_layer: tuple[float, ...]
    feature_cache: Mapping[str, int]
    wall_s: float
    finished: str
    versions: Mapping[str, str]
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Milliseconds, FLOPs, bytes and joules of one (backbone, method, budget), by stage, up to the first token.

    A stage is one of preprocess, encode, signals, reduce, splice, prefill, ttft, decode, end_to_end. `reduce` is all
    that a method adds: its decision, `signals` (its extra work in the encoder, taken out of encode) and its ranking
    inside the LLM (taken out of prefill). In a CUDA graph the last two cannot be separated and stay in encode and
    prefill. A missing key means that this was not measured.

    Attributes:
        schema: version of this format.
        backbone: its name.
        weights: where they came from; "random" for untrained ones.
        method: its name.
        params: its hyper-parameters.
        budget: as tables show it: `BudgetRequest.label`.
        configuration: eager, compile or cuda-graph; never mixed in one column.
        batch_size: prompts at once.
        num_images: per prompt.
        image_hw: height and width of the image in pixels.
        num_visual: visual tokens that the LLM reads, mean over its layers.
        visual_tokens_per_layer: the same, layer by layer.
        num_text: positions of the prompt that are not visual tokens.
        stages_ms: per stage, one value per repetition, in order; decode is per token.
        warmups: repetitions run before and discarded.
        stages_flops: per stage; 2 per multiply-add.
        peak_bytes: per stage, the most memory allocated during it, without the weights.
        weights_bytes: parameters and buffers.
        kv_bytes_per_layer: size of the KV cache after prefill.
        joules: "first_token", energy per first token above idle; "idle", what the idle card draws in that time; and
            "idle_watts".
        bound_ms: per stage, the least time that its FLOPs and bytes allow at the rates in `rates`.
        rates: measured in the same run: matmul FLOP/s and copied bytes/s.
        flags: reasons to doubt this row: scatter, throttling, other processes.
        monitor: clocks, temperature, power and throttle reasons before, during and after.
        environment: the machine; profiles of different environments never share a table.
        started: when this `dpbench profile` began, in UTC; only rows of one command were interleaved. None: unknown.
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

    @property
    def budget_request(self) -> BudgetRequest:
        """Return the request behind `budget`, its rate as exact as the label: to 0.1 %.

        Raises:
            RecordError: `budget` is not the label of a request.
        """
        if self.budget == EVERYTHING.label:
            return EVERYTHING
        try:
            if self.budget.endswith("%"):
                return BudgetRequest(prune_rate=min(float(self.budget.strip("-%")) / 100, _HIGHEST_RATE))
            return BudgetRequest(keep=int(self.budget))
        except (ValueError, ConfigError):
            raise RecordError(
                f"budget {self.budget!r} of a profile is neither a count, a rate such as '-88.9%' nor 'all'"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement of `dpbench probe`, with its raw values.

    Attributes:
        schema: version of this format.
        probe: coherence, landscape or noise.
        model: name of the frozen model.
        site: where the scorer sits: "projector" or "patch".
        checkpoint: folder of the trained scorer; None for a fresh one.
        step: training step of that scorer, 0 for a fresh one.
        setting: what identifies the measurement within the probe.
        shared: what all measurements of the command have in common: data, sizes, seed, the unit of tau.
        values: raw, a tuple of numbers by name.
        sources: hash of the code that measured.
        seconds: it took.
        finished: UTC, ISO 8601.
        environment: the machine and versions.
    """

    schema: int = 1
    probe: str
    model: str
    site: str
    checkpoint: str | None
    step: int
    setting: Mapping[str, Any]
    shared: Mapping[str, Any]
    values: Mapping[str, tuple[float, ...]]
    sources: str
    seconds: float
    finished: str
    environment: Mapping[str, Any]


Line = TypeVar("Line", Record, Profile, Probe)
_HIGHEST_RATE = 0.9995  # the label of this rate and of higher ones is -100.0%, but a request needs a rate below 1
_TYPES: Mapping[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Record, Profile, Probe)}


def append(path: Path, line: Record | Profile | Probe) -> None:
    """Append one line to a JSON-lines file, after removing what a kill may have left of the last line.

    Raises:
        StorageError: the disk has an error; all lines written before are still there.
    """
    _mend(path)
    files.append(path, _encode(line), sync=True)


def _encode(line: Record | Profile | Probe) -> bytes:
    return (json.dumps(asdict(line), ensure_ascii=False) + "\n").encode()


def read(path: Path, kind: type[Line]) -> list[Line]:
    """Read a file of records or profiles. A missing file has none; a last line cut off by a kill is ignored.

    Raises:
        RecordError: it is a folder, or a line has another schema or other fields.
    """
    if path.is_dir():
        raise RecordError(f"{path} is a folder, but should be a file of records; move it away")
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    if _is_complete(last):
        lines.append(last)
    return [_parse(line, kind, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line]


def _is_complete(last: bytes) -> bool:
    """Return True if a last line without a newline is complete: an editor may have removed the newline."""
    try:
        return isinstance(json.loads(last), dict)
    except (ValueError, RecursionError):
        return False


def _mend(path: Path) -> None:
    """Remove a last line that a kill cut off, or add the newline that a complete one lacks."""
    data = path.read_bytes() if path.is_file() else b""
    start = data.rfind(b"\n") + 1
    last = data[start:]
    if last and _is_complete(last):
        files.append(path, b"\n", sync=True)
    elif last:
        files.replace(path, data[:start])


def _parse(text: bytes, kind: type[Line], where: str) -> Line:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise RecordError(f"{where}: this line is not JSON; delete it and run again") from None
    if not isinstance(data, dict):
        raise RecordError(f"{where}: this line is not a record but a {type(data).__name__}; delete it and run again")
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
        raise RecordError(f"{where}: cell_id {name[:80]!r} points outside the run folder; delete the line")
    return kind(**{name: _restore_tuples(value) for name, value in data.items()})


def _restore_tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples, one level deep into mappings."""
    if isinstance(value, dict):
        return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each cell; cells that differ only in source hashes and versions count as one."""
    latest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.finished):
        settings = {name: value for name, value in record.cell.items() if name != "fingerprints"}
        weights = record.cell["fingerprints"].get("weights")
        latest[json.dumps([settings, weights], sort_keys=True)] = record
    return list(latest.values())


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Write records sorted by cell id, so that a committed file has readable diffs.

    Raises:
        StorageError: the disk has an error; the file is as it was.
    """
    rows = sorted(records, key=lambda record: record.cell_id)
    files.replace(path, b"".join(map(_encode, rows)))
