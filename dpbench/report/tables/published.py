"""The DiffPrune paper's Tables 1 to 5 as data (`manifests/paper/`): numbers, what they are, and how they came about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dpbench import registry, tasks
from dpbench.report.retention import retention

TABLES = (1, 2, 3, 4, 5)
COMPARISONS = (1, 2, 3)
WITHIN = 0.1
"""Points by which a printed average may differ from the mean of its row's printed scores."""


@dataclass(frozen=True, slots=True)
class Column:
    """What the numbers of a column in Tables 1 to 3 are.

    Attributes:
        task: our benchmark, or variant of one, that asks the same questions.
        metric: lmms-eval's name of it.
        split: of the data, as the hub names it.
        description: the quantity in words.
        source: where that comes from; starts with "inferred" where the paper does not say it.
    """

    task: str
    metric: str
    split: str
    description: str
    source: str

    @property
    def title(self) -> str:
        """Return the heading that the paper prints: that of the benchmark, whichever variant was asked."""
        return tasks.ALL[self.benchmark].title

    @property
    def benchmark(self) -> str:
        """Return the benchmark of which the task may be a variant."""
        return tasks.find(self.task).variant_of or self.task


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of the protocol behind a table.

    Attributes:
        value: as in a cell; None where it is not known.
        source: where the value comes from; starts with "inferred" where the paper does not say it.
        columns: the tasks that it matters to; empty if all.
    """

    value: Any
    source: str
    columns: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the value as a manifest spells it, or "not stated"."""
        return "not stated" if self.value is None else spelt(self.value)

    @property
    def basis(self) -> str:
        """Return the source in a word or two: inferred, appendix A, not stated."""
        return re.split("[:,]", self.source)[0]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: 1 to 5.
        source: paper, table and section.
        title: what was measured.
        backbone: as dpbench calls it.
        protocol: how it was measured, by cell field.
        data: everything else in the file.
    """

    number: int
    source: str
    title: str
    backbone: str
    protocol: Mapping[str, Setting]
    data: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the table's lines, as in its file."""
        return list(self.data["rows"])

    @property
    def columns(self) -> Mapping[str, Column]:
        """Return what the numbers of each benchmark are, by task, in the table's order (Table 4 has none)."""
        if (same := self.data.get("same_as_table")) is not None:
            return {task: load(same).columns[task] for task in self.data["tasks"]}
        return {
            task: Column(task, entry["metric"], entry["split"], entry["is"], entry["from"])
            for task, entry in self.data["columns"].items()
        }

    @property
    def notes(self) -> Sequence[str]:
        """Return what else may move the scores and is no field of a protocol."""
        return list(self.data.get("notes", ()))

    @property
    def unpruned(self) -> Mapping[str, float]:
        """Return the scores of the unpruned model (Tables 1 to 3)."""
        return dict(next(row for row in self.rows if row["method"] == "none")["scores"])


@dataclass(frozen=True, slots=True)
class Average:
    """A printed average retention and what its row's scores give, in percent."""

    table: int
    row: str
    group: str
    printed: float
    recomputed: float

    @property
    def agrees(self) -> bool:
        """Return True if the two differ by no more than `WITHIN`."""
        return abs(self.printed - self.recomputed) <= WITHIN + 1e-9


def folder() -> Path:
    """Return the folder of the tables: in the wheel, or in a source checkout."""
    inside = Path(str(files("dpbench"))) / "manifests" / "paper"
    return inside if inside.is_dir() else Path(str(files("dpbench"))).parent / "manifests" / "paper"


@cache
def load(table: int) -> PaperTable:
    """Return one of the paper's tables."""
    data = yaml.safe_load((folder() / f"table{table}.yaml").read_text(encoding="utf-8"))
    same = data.get("same_as_table")
    protocol = (
        load(same).protocol
        if same
        else {
            name: Setting(entry["value"], entry["from"], tuple(entry.get("columns", ())))
            for name, entry in data["protocol"].items()
        }
    )
    return PaperTable(data["table"], data["source"], data["title"], data["backbone"], protocol, data)


def averages() -> list[Average]:
    """Return every average that Tables 1 to 3 print for a pruned row, recomputed from the row."""
    return [
        Average(table.number, row["row"], group(table, row), row["average"], mean_of(table, row))
        for table in map(load, COMPARISONS)
        for row in table.rows
        if row["method"] != "none"
    ]


def mean_of(table: PaperTable, row: Mapping[str, Any]) -> float:
    """Return a row's average retention in percent, recomputed from the scores it prints."""
    value = retention({name: score for name, score in row["scores"].items() if score is not None}, table.unpruned)
    assert value is not None
    return value


def group(table: PaperTable, row: Mapping[str, Any]) -> str:
    """Return the heading above a row."""
    if row["method"] == "none":
        total = table.data["num_visual"]
        return f"Upper bound{f', {total} tokens' if total else ''} (100 %)"
    if row.get("budget") is None:
        return f"Pruning rate {100 * row['prune_rate']:.1f} %"
    return f"Retain {row['budget']} tokens ({100 * row['prune_rate']:.1f} % pruning)"


def why_not_run(table: PaperTable, row: Mapping[str, Any]) -> str | None:
    """Return why a row's system is not run here, or None where it is."""
    if row["method"] is None:
        return str(table.data["not_run"][row["row"]])
    return None if row["method"] in registry.methods() else "not among the methods that are installed here"


def spelt(value: Any) -> str:
    """Return a value of the protocol as a manifest spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def digits(task: str) -> int:
    """Return how many decimals the paper prints of a benchmark."""
    return 0 if task == "mme" else 1


def note_on(table: PaperTable, row: Mapping[str, Any]) -> str | None:
    """Return what a reader should know of a row's published numbers, or None."""
    if reason := why_not_run(table, row):
        return f"cited as printed, not run here: {reason}"
    notes = {**table.data.get("row_notes", {}), **table.data.get("not_compared", {})}
    return notes.get(row["method"])


def verdict() -> str:
    """Return one sentence on the averages, naming those that do not agree."""
    computed = averages()
    good = [average for average in computed if average.agrees]
    bad = "; ".join(
        f"Table {a.table}, {a.row}, {a.group}: {a.printed:.1f} printed, {a.recomputed:.2f} from its row"
        for a in computed
        if not a.agrees
    )
    text = f"{len(good)} of {len(computed)} averages agree within {WITHIN} with the mean of their row's scores"
    return f"{text}. Not: {bad}." if bad else f"{text}."
