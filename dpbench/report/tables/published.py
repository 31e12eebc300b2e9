"""The DiffPrune paper's Tables 1 to 5 as data (`manifests/paper/`), alone and beside our own records.

Published figures stand beside ours, never in place of ours. Rows of systems that are not run here are cited: grey where
the format has colours, and with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dpbench import registry, tasks
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import RETENTION, retention
from dpbench.report.tables.table import DASH, Cell, Footnotes, Row, Section, group_row, mark_best, number

TABLES = (1, 2, 3, 4, 5)
COMPARISONS = (1, 2, 3)
WITHIN = 0.1
"""Points by which a printed average may differ from the mean of its row's printed scores."""
LEGEND = "Cited rows stand as the paper prints them; dpbench does not run these systems:"


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: 1 to 5.
        source: paper, table and section.
        title: what was measured.
        backbone: as dpbench calls it.
        protocol: what the paper says of how, by cell field; `value` None where it does not say.
        data: everything else in the file.
    """

    number: int
    source: str
    title: str
    backbone: str
    protocol: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the table's lines, as in its file."""
        return list(self.data["rows"])

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
    return PaperTable(data["table"], data["source"], data["title"], data["backbone"], data["protocol"], data)


def averages() -> list[Average]:
    """Return every average that Tables 1 to 3 print for a pruned row, recomputed from the row."""
    return [
        Average(table.number, row["row"], group(table, row), row["average"], _mean(table, row))
        for table in map(load, COMPARISONS)
        for row in table.rows
        if row["method"] != "none"
    ]


def _mean(table: PaperTable, row: Mapping[str, Any]) -> float:
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


def sections(tables: Iterable[int] = TABLES) -> list[Section]:
    """Return the paper's tables, with what recomputing their averages gives."""
    makers = {4: _efficiency, 5: _ablation}
    return [makers.get(number, _scores)(load(number)) for number in tables]


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


def _scores(table: PaperTable) -> Section:
    names = list(table.rows[0]["scores"])
    located = any(row.get("location") for row in table.rows)
    titles = [tasks.ALL[name].title for name in names]
    columns = ("Method", *(("Loc.",) if located else ()), *titles, "Avg.", "Recomputed")
    notes, lines, numbers, heading = Footnotes(), list[Row](), [], ""
    marks = _marks(table, names)
    for at, row in enumerate(table.rows):
        if group(table, row) != heading:
            heading = group(table, row)
            lines.append(group_row(heading, len(columns)))
        reason = why_not_run(table, row)
        name = Cell(_name(row), refs=(notes.letter(reason),) if reason else ())
        scores = [Cell(_score(c, row["scores"][c]), marks[c].get(at, "")) for c in names]
        average = Cell(f"{row['average']:.1f}%", marks[RETENTION].get(at, ""))
        mean = _mean(table, row)
        where = (Cell(row.get("location") or DASH),) if located else ()
        cells = (name, *where, *scores, average, Cell(f"{mean:.2f}%"))
        lines.append(Row(cells, "cited" if reason else "data"))
        numbers.append(_numbers(table, row, mean))
    cited = (f"{LEGEND} {'; '.join(notes.notes())}.",) if notes.notes() else ()
    agreeing = [computed.agrees for computed in averages() if computed.table == table.number]
    agree = f"{sum(agreeing)} of {len(agreeing)} averages agree within {WITHIN} with their row."
    return Section(
        f"Table {table.number} of the paper: {table.title}",
        frame_of(numbers),
        (f"Source: {table.source}.", agree, *cited),
        columns,
        tuple(lines),
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['row']} ({row['venue']})" if row.get("venue") else str(row["row"])


def _score(column: str, value: float | None) -> str:
    return number(value, 0 if column == "mme" else 1)


def _marks(table: PaperTable, names: Sequence[str]) -> dict[str, dict[int, Any]]:
    """Return best and second of each column within each group."""
    marks: dict[str, dict[int, Any]] = {name: {} for name in (*names, RETENTION)}
    for heading in dict.fromkeys(group(table, row) for row in table.rows):
        same = {at: row for at, row in enumerate(table.rows) if group(table, row) == heading}
        for name in names:
            marks[name] |= mark_best({at: row["scores"][name] for at, row in same.items()})
        marks[RETENTION] |= mark_best({at: row["average"] for at, row in same.items()})
    return marks


def _numbers(table: PaperTable, row: Mapping[str, Any], mean: float) -> dict[str, Any]:
    return {
        "Table": table.number,
        "Method": row["row"],
        "Budget": row.get("budget"),
        "Prune rate": row["prune_rate"],
        "Location": row.get("location"),
        **{tasks.ALL[name].title: value for name, value in row["scores"].items()},
        "Avg.": row["average"],
        "Recomputed": mean,
    }


def _efficiency(table: PaperTable) -> Section:
    heads: Mapping[str, str] = table.data["columns"]
    columns = ("Method", "Loc.", "Tokens", *heads.values(), "Speed-up")
    none = table.rows[0]["values"]["ttft"]
    lines, numbers = [], []
    for row in table.rows:
        speedup = none / row["values"]["ttft"]
        values = [f"{row['values'][name]:.2f}" for name in heads]
        texts = (row["row"], row["location"] or DASH, str(row["budget"]), *values, f"{speedup:.2f}x")
        lines.append(Row(tuple(map(Cell, texts))))
        times = {heads[name]: row["values"][name] for name in heads}
        numbers.append(
            {"Table": 4, "Method": row["row"], "Location": row["location"], "Tokens": row["budget"], **times}
        )
    unexplained = [
        row["values"]["ttft"] - sum(row["values"][n] for n in ("encode", "reduce", "prefill")) for row in table.rows
    ]
    notes = (
        f"Source: {table.source}. Speed-up: computed here, TTFT of the first row over the row's.",
        f"TTFT is {min(unexplained):.2f} to {max(unexplained):.2f} ms more than encoder, pruner and prefill together; "
        "the paper does not say what that is.",
    )
    return Section(f"Table 4 of the paper: {table.title}", frame_of(numbers), notes, columns, tuple(lines))


def _ablation(table: PaperTable) -> Section:
    budgets = table.data["budgets"]["value"]
    columns = ("Variant", "Replaced design", *(f"{budget} tokens" for budget in budgets))
    lines = [
        Row(tuple(map(Cell, (row["row"], row["replaced"] or DASH, *(f"{value:.1f}%" for value in row["values"])))))
        for row in table.rows
    ]
    numbers = [
        {"Table": 5, "Variant": row["row"], "Replaced": row["replaced"], "Budget": budget, "Retention": value}
        for row in table.rows
        for budget, value in zip(budgets, row["values"], strict=True)
    ]
    titles = ", ".join(tasks.ALL[name].title for name in table.data["tasks"])
    notes = (
        f"Source: {table.source}. Average retention over {titles}.",
        f"The budgets are {table.data['budgets']['from']}.",
        _compare_with_table_1(table),
    )
    return Section(f"Table 5 of the paper: {table.title}", frame_of(numbers), notes, columns, tuple(lines))


def _compare_with_table_1(table: PaperTable) -> str:
    """Return a sentence that recomputes Table 5's DiffPrune row from its rows in Table 1."""
    first = load(1)
    ours = {row["budget"]: row["scores"] for row in first.rows if row["method"] == "diffprune"}
    names = table.data["tasks"]
    means = [retention({n: ours[b][n] for n in names}, first.unpruned) for b in table.data["budgets"]["value"]]
    again, printed = (" / ".join(f"{value:.1f}" for value in values) for values in (means, table.rows[0]["values"]))
    return f"Full DiffPrune prints {printed}; its rows in Table 1 give {again} over the same benchmarks."
