"""What a report reads: run folders, their records and profiles, and which records may share a table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import UnionType
from typing import Any

from dpbench import tasks
from dpbench.errors import ConfigError, RecordError, shown
from dpbench.storage import plain_yaml, record
from dpbench.storage.record import Profile, Record

SHARED = (
    "backbone",
    "revision",
    "quantize",
    "prompt",
    "ocr",
    "dtype",
    "attention",
    "anyres",
    "newline",
    "min_pixels",
    "max_pixels",
    "budget_kind",
    "limit",
    "subset",
)
"""Cell fields that must agree within one table; weights are compared by their hash."""

REQUIRED = frozenset(
    (
        "backbone",
        "task",
        "method",
        "params",
        "keep",
        "prune_rate",
        "seed",
        "limit",
        "dtype",
        "attention",
        "fingerprints",
    )
)


KINDS: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("task", "method", "backbone"), str),
    **dict.fromkeys(("params", "fingerprints"), dict),
    "keep": int | None,
    "prune_rate": float | int | None,
    "seed": int,
}
"""What a report sorts and compares of a cell, and must be able to."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder's content.

    Attributes:
        folder: where it lies.
        records: of its finished cells, the newest of each.
        profiles: as read.
        asked: the (method, benchmark) pairs of its manifest.
    """

    folder: Path
    records: tuple[Record, ...]
    profiles: tuple[Profile, ...]
    asked: frozenset[tuple[str, str]] = frozenset()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return its benchmarks, recorded or asked for, in the paper's order."""
        names = {each.cell["task"] for each in self.records} | {task for _, task in self.asked}
        return tuple(name for name in known_tasks() if name in names)


@dataclass(frozen=True, slots=True, order=True)
class RowKey:
    """What one row of a comparison stands for: a method with its parameters at one budget, all seeds together."""

    keep: int | None
    prune_rate: float | None
    method: str
    params: str

    @property
    def budget(self) -> tuple[int | None, float | None]:
        """Return what rows of one group share."""
        return self.keep, self.prune_rate

    @property
    def label(self) -> str:
        """Return the method with its parameters, as tables show it."""
        return self.method + options(json.loads(self.params))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Records that may stand in one table: one backbone under one protocol, the same benchmarks and data.

    Attributes:
        rows: the records of each row; a row without records is not here.
        folders: the runs they come from.
        tasks: the benchmarks that have a column, in the paper's order.
        asked: the (method, benchmark) pairs their manifests ask for.
    """

    rows: Mapping[RowKey, tuple[Record, ...]]
    folders: tuple[Path, ...]
    tasks: tuple[str, ...]
    asked: frozenset[tuple[str, str]] = frozenset()

    @property
    def records(self) -> list[Record]:
        """Return every record of the table."""
        return [each for row in self.rows.values() for each in row]

    @property
    def cell(self) -> Mapping[str, Any]:
        """Return a cell: what `SHARED` names is the same in all."""
        return self.records[0].cell

    def of(self, key: RowKey, task: str) -> list[Record]:
        """Return a row's records of one benchmark, one per seed, by seed."""
        return sorted(
            (each for each in self.rows[key] if each.cell["task"] == task), key=lambda each: each.cell["seed"]
        )

    def find(self, method: str, budget: tuple[int | None, float | None] | None = None) -> RowKey | None:
        """Return the row of a method without parameters, at a budget if one is given."""
        hits = [k for k in self.rows if k.method == method and budget in (None, k.budget)]
        return min(hits, key=lambda key: (key.params != "{}", key)) if hits else None


def runs_under(root: Path) -> list[Path]:
    """Return the run folders below a results folder.

    Raises:
        ConfigError: there are none.
    """
    found = sorted({path.parent for name in ("records.jsonl", "profile.jsonl") for path in root.glob(f"*/{name}")})
    if not found:
        raise ConfigError(f"there are no records under {root}; run something first, or name a run folder")
    return found


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: it holds neither records nor profiles.
        RecordError: a line cannot be read, or names a benchmark this dpbench does not know.
    """
    records = record.read(folder / "records.jsonl", Record)
    profiles = record.read(folder / "profile.jsonl", Profile)
    if not records and not profiles:
        raise ConfigError(f"{folder} holds no records.jsonl and no profile.jsonl; name a run folder")
    for each in records:
        _check(each, folder)
    return Run(folder, tuple(record.newest(records)), tuple(profiles), _asked(folder) if records else frozenset())


def known_tasks() -> Mapping[str, tasks.Task]:
    """Return every benchmark, the ten first."""
    return {**tasks.TASKS, **getattr(tasks, "ALL", {})}


def _check(each: Record, folder: Path) -> None:
    absent = sorted(REQUIRED - set(each.cell))
    where = f"{folder / 'records.jsonl'}: cell {each.cell_id}"
    if absent:
        raise RecordError(f"{where} has no {absent[0]!r}; it is no record of a finished cell, move the file away")
    for name, kind in KINDS.items():
        if not isinstance(each.cell[name], kind) or isinstance(each.cell[name], bool):
            raise RecordError(f"{where}: {name} is {shown(each.cell[name])}; move the file away")
    if each.cell["task"] not in known_tasks():
        raise RecordError(f"{where} is of task {each.cell['task']!r}, which this dpbench does not know; update dpbench")
    if not isinstance(each.score, int | float) or not -1e-6 <= each.score <= 100 + 1e-6:
        raise RecordError(f"{where} has the score {each.score!r}, scores are 0 to 100; run the cell again")


def _asked(folder: Path) -> frozenset[tuple[str, str]]:
    """Return the methods and benchmarks of the run's manifest."""
    path = folder / "manifest.yaml"
    try:
        data = plain_yaml.load(path.read_text(encoding="utf-8"))[0] if path.is_file() else {}
        names = [each if isinstance(each, str) else each["name"] for each in data.get("methods", ())]
        return frozenset((name, task) for name in names for task in data.get("tasks", tasks.TASKS))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise RecordError(f"{path} is no manifest that dpbench wrote; restore it or delete it") from None


def comparisons(runs: Iterable[Run]) -> list[Comparison]:
    """Return the tables these runs make: runs join where protocol, weights and benchmarks agree.

    Raises:
        RecordError: records of one benchmark in one run were scored on different data or with different rules.
    """
    groups: dict[str, list[tuple[Run, Record]]] = defaultdict(list)
    for run in runs:
        for each in run.records:
            groups[_protocol(run, each)].append((run, each))
    return [_comparison(group) for _, group in sorted(groups.items())]


def _protocol(run: Run, each: Record) -> str:
    weights = each.cell["fingerprints"].get("weights", each.cell.get("weights"))
    return repr(({name: each.cell.get(name) for name in SHARED}, weights, run.tasks))


def _comparison(group: Sequence[tuple[Run, Record]]) -> Comparison:
    rows: dict[RowKey, list[Record]] = defaultdict(list)
    for each in record.newest(each for _, each in group):
        rows[row_key(each.cell)].append(each)
    _same_data([each for row in rows.values() for each in row], group)
    folders = tuple(dict.fromkeys(run.folder for run, _ in group))
    ordered = {key: tuple(rows[key]) for key in sorted(rows, key=_order)}
    asked = frozenset(pair for run, _ in group for pair in run.asked)
    return Comparison(ordered, folders, group[0][0].tasks, asked)


def _same_data(records: Sequence[Record], group: Sequence[tuple[Run, Record]]) -> None:
    """Refuse a column whose cells were answered on different data or scored by different rules."""
    for kind, what in (("data", "other data"), ("task", "other task rules")):
        by_task: dict[str, dict[str, Record]] = defaultdict(dict)
        for each in records:
            by_task[each.cell["task"]].setdefault(each.cell["fingerprints"].get(kind, ""), each)
        for task, found in by_task.items():
            if len(found) > 1:
                first, second, *_ = found.values()
                where = ", ".join(dict.fromkeys(str(run.folder) for run, _ in group))
                raise RecordError(
                    f"{where}: {task} of {second.cell['method']} (cell {second.cell_id}) has {what} than "
                    f"{first.cell['method']} (cell {first.cell_id}) and cannot share its table; run the older again"
                )


def row_key(cell: Mapping[str, Any]) -> RowKey:
    """Return the row a cell belongs to."""
    return RowKey(cell["keep"], cell["prune_rate"], cell["method"], json.dumps(cell["params"], sort_keys=True))


def _order(key: RowKey) -> tuple[Any, ...]:
    return (key.method != "none", -(key.keep or 0), key.prune_rate or 0, key.method != "random", key.method, key.params)


def options(params: Mapping[str, Any]) -> str:
    """Return hyper-parameters as tables show them: the last part of a path, nothing where there are none."""
    texts = [f"{name}={Path(value).name if isinstance(value, str) else value}" for name, value in params.items()]
    return f" ({', '.join(texts)})" if texts else ""


def unpruned_tokens(comparison: Comparison) -> float | None:
    """Return how many visual tokens the unpruned model read, mean over samples and benchmarks."""
    key = comparison.find("none")
    records = comparison.rows[key] if key else ()
    read = [mean(each.visual_tokens_per_layer) for each in records if each.visual_tokens_per_layer]
    return mean(read) if read else None
