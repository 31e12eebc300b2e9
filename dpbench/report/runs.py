"""What a report reads: run folders, their records and profiles, and which records may share a table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import mean
from types import UnionType
from typing import Any

from dpbench import backbones, tasks
from dpbench.budget import BudgetRequest
from dpbench.errors import ConfigError, RecordError, format_value
from dpbench.manifest.cell import PROTOCOL_FIELDS, WEIGHTS_FIELDS
from dpbench.storage import plain_yaml, record
from dpbench.storage.record import Probe, Profile, Record

SHARED = ("backbone", *(name for name in WEIGHTS_FIELDS if name != "weights"), *PROTOCOL_FIELDS, "budget_kind")
"""Cell fields that must agree within one table; weights are compared by their hash."""
KINDS: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("task", "method", "backbone"), str),
    **dict.fromkeys(("params", "fingerprints"), dict),
    "keep": int | None,
    "prune_rate": float | int | None,
    "seed": int,
}
"""Types of the cell fields that a report sorts and compares."""
REQUIRED = frozenset((*KINDS, *SHARED, "weights"))
"""Fields that the cell of every record has."""

FILES = ("records.jsonl", "profile.jsonl", "probes.jsonl")
"""A folder with any of them is a run."""
_ROUNDING = 1e-6
"""Points by which a score may differ from the metric that it is."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder's content.

    Attributes:
        folder: the run folder.
        records: the newest record of every finished cell.
        profiles: all profiles, in the order of the file.
        planned: the (method, benchmark) pairs of its manifest.
        probes: all measurements of `dpbench probe`, in the order of the file.
    """

    folder: Path
    records: tuple[Record, ...]
    profiles: tuple[Profile, ...]
    planned: frozenset[tuple[str, str]] = frozenset()
    probes: tuple[Probe, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return its benchmarks, recorded or planned, in the paper's order."""
        names = {row.cell["task"] for row in self.records} | {task for _, task in self.planned}
        return tuple(name for name in tasks.ALL if name in names)


@dataclass(frozen=True, slots=True)
class RowKey:
    """The key of a comparison's row: a method with its parameters at one budget, all seeds together."""

    budget: BudgetRequest
    method: str
    params: str

    @property
    def label(self) -> str:
        """Return the method with its parameters, as tables show it."""
        return self.method + format_params(json.loads(self.params))

    @property
    def order(self) -> tuple[Any, ...]:
        """Return the sort key of rows: the unpruned model, then large budgets first, each with `random` at its head."""
        return self.method != "none", largest_first(self.budget), self.method != "random", self.method, self.params


def largest_first(budget: BudgetRequest) -> tuple[float, float]:
    """Return a sort key that puts large budgets first."""
    return -(budget.keep or 0), budget.prune_rate or 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Records that may share a table: one backbone under one protocol, the same benchmarks and data.

    Attributes:
        rows: the records of every row that has any.
        folders: the run folders of these records.
        tasks: the benchmarks that have a column, in the paper's order.
        planned: the (method, benchmark) pairs of their manifests.
    """

    rows: Mapping[RowKey, tuple[Record, ...]]
    folders: tuple[Path, ...]
    tasks: tuple[str, ...]
    planned: frozenset[tuple[str, str]] = frozenset()

    @property
    def records(self) -> list[Record]:
        """Return every record of the table."""
        return [row for rows in self.rows.values() for row in rows]

    @property
    def cell(self) -> Mapping[str, Any]:
        """Return a cell: the fields of `SHARED` are the same in all."""
        return self.records[0].cell

    def of(self, key: RowKey, task: str) -> list[Record]:
        """Return a row's records of one benchmark, one per seed, by seed."""
        return sorted((row for row in self.rows[key] if row.cell["task"] == task), key=lambda row: row.cell["seed"])

    def find(self, method: str, budget: BudgetRequest | None = None) -> RowKey | None:
        """Return the row of a method, at the budget if it is not None; preferably one without parameters."""
        keys = [key for key in self.rows if key.method == method and budget in (None, key.budget)]
        return min(keys, key=lambda key: (key.params != "{}", key.order)) if keys else None


def scores_of(records: Iterable[Record]) -> dict[str, float]:
    """Return a row's score per benchmark, mean over seeds."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for row in records:
        by_task[row.cell["task"]].append(row.score)
    return {name: mean(values) for name, values in by_task.items()}


def runs_under(root: Path) -> list[Path]:
    """Return the run folders below a results folder.

    Raises:
        ConfigError: there are none.
    """
    folders = sorted({path.parent for name in FILES for path in root.glob(f"*/{name}")})
    if not folders:
        raise ConfigError(f"there are no records under {root}; run something first, or name a run folder")
    return folders


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: it does not exist, or has neither records, profiles nor probes.
        RecordError: a line cannot be read, or names a benchmark this dpbench does not know.
    """
    if not folder.exists():
        beside = {path.name: str(path) for path in folder.parent.glob("*/") if _has_records(path)}
        near = get_close_matches(folder.name, beside, n=1)
        raise ConfigError(
            f"there is no folder {folder}; {f'did you mean {beside[near[0]]}?' if near else 'name a run folder'}"
        )
    records = [_with_new_fields(row) for row in record.read(folder / "records.jsonl", Record)]
    profiles = record.read(folder / "profile.jsonl", Profile)
    probes = record.read(folder / "probes.jsonl", Probe)
    if not records and not profiles and not probes:
        inside = [str(path) for path in sorted(folder.glob("*/")) if _has_records(path)]
        remedy = f"name one of its runs: {', '.join(inside)}" if inside else "name a run folder"
        raise ConfigError(f"{folder} has neither records.jsonl nor profile.jsonl nor probes.jsonl; {remedy}")
    for row in records:
        _check_record(row, folder)
    current = record.newest(_without_subset(row) for row in records)
    planned = _read_planned(folder) if records else frozenset()
    return Run(folder, tuple(current), tuple(profiles), planned, tuple(probes))


def _has_records(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _with_new_fields(row: Record) -> Record:
    """Return a record of an earlier version with the protocol fields it lacks, as that version behaved."""
    family = backbones.FAMILIES.get(str(row.cell.get("backbone")))
    earlier = {
        "wording": "lmms-eval",
        "reading": "first-word",
        "grids": "transformers" if family and family.tiles else None,
        "image_aspect": "crop" if family and family.image_aspect else None,
    }
    return replace(row, cell={**earlier, **row.cell})


def _without_subset(row: Record) -> Record:
    """Return a record without the former cell field `subset`, None after `_check_record`: old cells equal new ones."""
    return replace(row, cell={name: value for name, value in row.cell.items() if name != "subset"})


def _check_record(row: Record, folder: Path) -> None:
    """Refuse a record that a report cannot sort, compare or name.

    Raises:
        RecordError: the message says where the record is and what is wrong with it.
    """
    cell, where = row.cell, f"{folder / 'records.jsonl'}: cell {row.cell_id}"
    if absent := sorted(REQUIRED - set(cell)):
        raise RecordError(f"{where} has no {absent[0]!r}; it is not a record of a finished cell, move the file away")
    for name, kind in KINDS.items():
        if not isinstance(cell[name], kind) or isinstance(cell[name], bool):
            raise RecordError(f"{where}: {name} is {format_value(cell[name])}; move the file away")
    try:
        _budget(cell)
    except ConfigError as error:
        raise RecordError(f"{where}: {error}; move the file away") from None
    if cell.get("subset") is not None:
        raise RecordError(
            f"{where} was scored on the {cell['subset']} subset alone, as older versions could; delete the line, "
            "and choose the subset from full records with `dpbench report --subset hard`"
        )
    if cell["task"] not in tasks.ALL:
        raise RecordError(f"{where} is of task {cell['task']!r}, which this dpbench does not know; update dpbench")
    if not isinstance(row.score, int | float) or not -1e-6 <= row.score <= 100 + 1e-6:
        raise RecordError(f"{where} has the score {row.score!r}, scores are 0 to 100; run the cell again")


def _read_planned(folder: Path) -> frozenset[tuple[str, str]]:
    """Return the methods and benchmarks of the run's manifest."""
    path = folder / "manifest.yaml"
    try:
        data = plain_yaml.load(path.read_text(encoding="utf-8"))[0] if path.is_file() else {}
        methods = [method if isinstance(method, str) else method["name"] for method in data.get("methods", ())]
        return frozenset((method, task) for method in methods for task in data.get("tasks", tasks.TASKS))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise RecordError(f"{path} is not a manifest that dpbench wrote; restore it or delete it") from None


def comparisons(runs: Iterable[Run]) -> list[Comparison]:
    """Return the tables of these runs: runs share a table if their protocol, weights and benchmarks agree.

    Raises:
        RecordError: records of one benchmark in one run were scored on different data or with different rules.
    """
    groups: dict[str, list[tuple[Run, Record]]] = defaultdict(list)
    for run in runs:
        for row in run.records:
            groups[_protocol_key(run, row)].append((run, row))
    return [_build_comparison(group) for _, group in sorted(groups.items())]


def _protocol_key(run: Run, row: Record) -> str:
    weights = row.cell["fingerprints"].get("weights", row.cell["weights"])
    return repr(({name: row.cell[name] for name in SHARED}, weights, run.tasks))


def _build_comparison(group: Sequence[tuple[Run, Record]]) -> Comparison:
    rows: dict[RowKey, list[Record]] = defaultdict(list)
    for row in record.newest(row for _, row in group):
        rows[row_key(row.cell)].append(row)
    folders = tuple(dict.fromkeys(run.folder for run, _ in group))
    _check_same_data([row for records in rows.values() for row in records], folders)
    ordered = {key: tuple(rows[key]) for key in sorted(rows, key=lambda key: key.order)}
    planned = frozenset(pair for run, _ in group for pair in run.planned)
    return Comparison(ordered, folders, group[0][0].tasks, planned)


def _check_same_data(records: Sequence[Record], folders: Sequence[Path]) -> None:
    """Refuse a column whose cells were answered on different data or scored by different rules."""
    for kind, what in (("data", "other data"), ("task", "other task rules")):
        by_task: dict[str, dict[str, Record]] = defaultdict(dict)
        for row in records:
            by_task[row.cell["task"]].setdefault(row.cell["fingerprints"].get(kind, ""), row)
        for task, by_hash in by_task.items():
            if len(by_hash) > 1:
                first, second, *_ = by_hash.values()
                raise RecordError(
                    f"{', '.join(map(str, folders))}: {task} of {second.cell['method']} (cell {second.cell_id}) has "
                    f"{what} than {first.cell['method']} (cell {first.cell_id}) and cannot share its table; "
                    "run the older again"
                )


def metric_of_score(row: Record) -> str | None:
    """Return which of a record's metrics is its score; None if they do not tell.

    Earlier versions scored POPE by accuracy: such a score must not be read as today's.
    """
    benchmark = tasks.ALL[row.cell["task"]]
    scale = 1 if benchmark.percent == "percent" else 100
    equal = [name for name, value in row.metrics.items() if abs(scale * value - row.score) < _ROUNDING]
    return benchmark.metric if benchmark.metric in equal else next(iter(equal), None)


def row_key(cell: Mapping[str, Any]) -> RowKey:
    """Return the row a cell belongs to."""
    return RowKey(_budget(cell), cell["method"], json.dumps(cell["params"], sort_keys=True))


def _budget(cell: Mapping[str, Any]) -> BudgetRequest:
    return BudgetRequest(cell["keep"], cell["prune_rate"])


def format_params(params: Mapping[str, Any]) -> str:
    """Return hyper-parameters as tables show them: the last part of a path, nothing without parameters."""
    texts = [f"{name}={Path(value).name if isinstance(value, str) else value}" for name, value in params.items()]
    return f" ({', '.join(texts)})" if texts else ""


def unpruned_tokens(comparison: Comparison) -> float | None:
    """Return how many visual tokens the unpruned model read, mean over samples and benchmarks."""
    key = comparison.find("none")
    records = comparison.rows[key] if key else ()
    tokens = [mean(row.visual_tokens_per_layer) for row in records if row.visual_tokens_per_layer]
    return mean(tokens) if tokens else None
