"""Data for the page's template and script: tables as flat rows, chart traces, records with their commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpbench import tasks
from dpbench.report.figures.colours import PLOTLY_DASHES, look, looks
from dpbench.report.figures.data import Point, front
from dpbench.report.figures.scores import by_label
from dpbench.report.groups import groups as groups_of
from dpbench.report.html.commands import command
from dpbench.report.runs import Comparison, RowKey, Run, row_key
from dpbench.report.tables.table import Row, Section
from dpbench.storage.record import Profile, Record


def flat_table(section: Section, comparison: Comparison | None = None, heading: str = "") -> dict[str, Any]:
    """Return a table for the template; its rows have their group, the method's colour and the records of their cells.

    Args:
        section: any table.
        comparison: has the same rows in the same groups; then scores link to their records.
        heading: replaces the section's heading.
    """
    keys = iter([key for _, same in groups_of(comparison, comparison.rows) for key in same] if comparison else ())
    rows, groups = [], []
    for row in section.rows:
        if row.kind == "group":
            groups.append(row.cells[0].text)
            continue
        key = next(keys, None)
        flat_row = _row(section.columns, row, len(groups) - 1, comparison, key)
        rows.append({**flat_row, "budget": _short_heading(groups[-1]) if groups else ""})
    return {
        "heading": heading or section.heading,
        "columns": section.columns,
        "groups": groups,
        "rows": rows,
        "notes": section.notes,
    }


def _short_heading(group: str) -> str:
    """Return the first words of a budget's heading, for rows that sorting moved away from it."""
    return re.split(r"[,(]| visual", group)[0].strip()


def _row(
    columns: Sequence[str], row: Row, group: int, comparison: Comparison | None, key: RowKey | None
) -> dict[str, Any]:
    cells = [{"text": cell.text, "mark": cell.mark, "refs": ", ".join(cell.refs), "records": ""} for cell in row.cells]
    if comparison is not None and key is not None:
        ids = {tasks.ALL[record.cell["task"]].title: "" for record in comparison.rows[key]}
        for record in comparison.rows[key]:
            title = tasks.ALL[record.cell["task"]].title
            ids[title] = f"{ids[title]} {record.cell_id}".strip()
        for name, cell in zip(columns, cells, strict=True):
            cell["records"] = ids.get(name, "")
    return {"cells": cells, "group": group, "kind": row.kind, "colour": _colour(columns, row)}


def _colour(columns: Sequence[str], row: Row) -> str:
    """Return the colour of a row's method; empty if the first cell is not a method."""
    return look(row.cells[0].text.split(" ")[0]).colour if columns[0] == "Method" else ""


def chart(axes: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Return the Pareto chart: per horizontal axis the series and the front."""
    return {
        "axes": [{"name": name, "front": _front(points), "series": _series(points)} for name, points in axes.items()]
    }


def _front(points: Sequence[Point]) -> list[list[float]]:
    return [[point.at, point.value] for point in front(points)]


def _series(points: Sequence[Point]) -> list[dict[str, Any]]:
    traces, lines = [], by_label(points)
    styles = looks({label: series[0].method for label, series in lines.items()})
    for label, series in lines.items():
        style = styles[label]
        traces.append(
            {
                "label": label,
                "colour": style.colour,
                "symbol": style.symbol,
                "dash": PLOTLY_DASHES[style.dash],
                "points": [[point.at, point.value, point.low, point.high, point.budget] for point in series],
            }
        )
    return traces


def records(loaded: Sequence[Run]) -> list[dict[str, Any]]:
    """Return every record with the command that reruns it, for the table of records and the dialog."""
    return [_record(record, run) for run in loaded for record in run.records]


def _record(record: Record, run: Run) -> dict[str, Any]:
    cell = record.cell
    layers = record.visual_tokens_per_layer
    return {
        "id": record.cell_id,
        "run": run.folder.name,
        "method": row_key(cell).label,
        "budget": row_key(cell).budget.label,
        "task": tasks.ALL[cell["task"]].title,
        "seed": cell["seed"],
        "score": f"{record.score:.1f}",
        "samples": record.num_samples,
        "failed": record.num_failed,
        "tokens": f"{sum(layers) / len(layers):.1f}" if layers else "-",
        "seconds": f"{record.wall_s:.1f}",
        "finished": record.finished,
        "command": command(cell, run.folder),
    }


def environments(records: Iterable[Record], profiles: Iterable[Profile]) -> list[dict[str, Any]]:
    """Return the distinct environments as flat facts, with the number of their records and profiles."""
    entries: dict[str, dict[str, Any]] = {}
    facts_by_kind: list[tuple[str, dict[str, str]]] = [
        *(("records", _flat({**record.environment, "versions": record.versions})) for record in records),
        *(("profiles", _flat(profile.environment)) for profile in profiles),
    ]
    for kind, facts in facts_by_kind:
        entry = entries.setdefault(json.dumps(facts, sort_keys=True), {"facts": facts, "records": 0, "profiles": 0})
        entry[kind] += 1
    return list(entries.values())


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{name} ") if isinstance(value, Mapping) else {prefix + name: str(value)}
    return flat
