"""The DiffPrune paper's Tables 1 to 5 alone, as `dpbench report --paper` prints them.

Rows of systems that are not run here are cited: grey where the format has colours, and with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dpbench import tasks
from dpbench.report.marks import rank
from dpbench.report.retention import RETENTION, retention
from dpbench.report.tables import published
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Footnotes, Mark, Row, Section, group_row, number


def sections(tables: Iterable[int] = published.TABLES) -> list[Section]:
    """Return the paper's tables, with what recomputing their averages gives."""
    makers = {4: _efficiency, 5: _ablation}
    return [makers.get(number, _scores)(published.load(number)) for number in tables]


def _scores(table: PaperTable) -> Section:
    located = any(row.get("location") for row in table.rows)
    titles = [column.title for column in table.columns.values()]
    columns = ("Method", *(("Loc.",) if located else ()), *titles, "Avg.", "Recomputed")
    notes, lines, heading = Footnotes(), list[Row](), ""
    marks = _marks(table)
    for at, row in enumerate(table.rows):
        if published.group(table, row) != heading:
            heading = published.group(table, row)
            lines.append(group_row(heading, len(columns)))
        cells = _cells(table, row, {name: marks[name].get(at, "") for name in marks}, notes, located=located)
        lines.append(Row(tuple(cells), "cited" if published.why_not_run(table, row) else "data"))
    agreeing = [computed.agrees for computed in published.averages() if computed.table == table.number]
    agree = f"{sum(agreeing)} of {len(agreeing)} averages agree within {published.WITHIN} with their row."
    return Section(
        f"Table {table.number} of the paper: {table.title}",
        frame_of([_numbers(table, row) for row in table.rows]),
        (f"Source: {table.source}.", agree, *_columns_of(table), _protocol_of(table), *table.notes, *notes.notes()),
        columns,
        tuple(lines),
        "paper",
    )


def _cells(
    table: PaperTable, row: Mapping[str, Any], marks: Mapping[str, Mark], notes: Footnotes, *, located: bool
) -> Iterable[Cell]:
    note = published.note_on(table, row)
    yield Cell(_name(row), refs=(notes.letter(note),) if note else ())
    if located:
        yield Cell(row.get("location") or DASH)
    for name, value in row["scores"].items():
        yield Cell(number(value, published.digits(name)), marks[name])
    yield Cell(f"{row['average']:.1f}%", marks[RETENTION])
    yield Cell(f"{published.mean_of(table, row):.2f}%")


def _columns_of(table: PaperTable) -> Iterable[str]:
    """Yield what each column's numbers are, and where that comes from."""
    for column in table.columns.values():
        yield f"{column.title}: {column.description} ({column.source})."


def _protocol_of(table: PaperTable) -> str:
    if (same := table.data.get("same_as_table")) is not None:
        return f"Protocol, and what each benchmark's numbers are: as Table {same}."
    parts = (
        f"{name} {setting.source}" if setting.value is None else f"{name} {setting.text} ({setting.source})"
        for name, setting in table.protocol.items()
    )
    return f"Protocol: {'; '.join(parts)}."


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['row']} ({row['venue']})" if row.get("venue") else str(row["row"])


def _marks(table: PaperTable) -> dict[str, dict[int, Mark]]:
    """Return best and second of each column within each group, by the row's place."""
    marks: dict[str, dict[int, Mark]] = {name: {} for name in (*table.columns, RETENTION)}
    for heading in dict.fromkeys(published.group(table, row) for row in table.rows):
        same = {at: row for at, row in enumerate(table.rows) if published.group(table, row) == heading}
        for name in table.columns:
            marks[name] |= rank({at: row["scores"][name] for at, row in same.items()})
        marks[RETENTION] |= rank({at: row["average"] for at, row in same.items()})
    return marks


def _numbers(table: PaperTable, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Table": table.number,
        "Method": row["row"],
        "Budget": row.get("budget"),
        "Prune rate": row["prune_rate"],
        "Location": row.get("location"),
        **{table.columns[name].title: value for name, value in row["scores"].items()},
        "Avg.": row["average"],
        "Recomputed": published.mean_of(table, row),
    }


def _efficiency(table: PaperTable) -> Section:
    heads: Mapping[str, str] = table.data["headings"]
    columns = ("Method", "Loc.", "Tokens", *heads.values(), "Speed-up")
    none = table.rows[0]["values"]["ttft"]
    lines, numbers, footnotes = [], [], Footnotes()
    for row in table.rows:
        speedup = none / row["values"]["ttft"]
        values = [f"{row['values'][name]:.2f}" for name in heads]
        note = published.note_on(table, row)
        name = Cell(row["row"], refs=(footnotes.letter(note),) if note else ())
        texts = (row["location"] or DASH, str(row["budget"]), *values, f"{speedup:.2f}x")
        lines.append(Row((name, *map(Cell, texts))))
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
        _protocol_of(table),
        *footnotes.notes(),
    )
    return Section(f"Table 4 of the paper: {table.title}", frame_of(numbers), notes, columns, tuple(lines), "paper")


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
        _protocol_of(table),
        _compare_with_table_1(table),
    )
    return Section(f"Table 5 of the paper: {table.title}", frame_of(numbers), notes, columns, tuple(lines), "paper")


def _compare_with_table_1(table: PaperTable) -> str:
    """Return a sentence that recomputes Table 5's DiffPrune row from its rows in Table 1."""
    first = published.load(1)
    ours = {row["budget"]: row["scores"] for row in first.rows if row["method"] == "diffprune"}
    names = table.data["tasks"]
    means = [retention({n: ours[b][n] for n in names}, first.unpruned) for b in table.data["budgets"]["value"]]
    again, printed = (" / ".join(f"{value:.1f}" for value in values) for values in (means, table.rows[0]["values"]))
    return f"Full DiffPrune prints {printed}; its rows in Table 1 give {again} over the same benchmarks."
