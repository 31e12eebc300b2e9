"""VP-noise against hard removal under the same scores (Figure 4b of the DiffPrune paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpbench.probe import statistics
from dpbench.probe.statistics import Matrix
from dpbench.report.tables.probe_text import describe, flat, interval
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Row, Section, group_row, number
from dpbench.storage.record import Probe

COLUMNS = ("Restriction", "Top-1", "minus removal", "Top-5", "minus removal", "Loss")
MEASURES = {"Top-1": "top1", "Top-5": "top5"}
"""Columns in percent, and their names in a record."""
FORMS = {"unpruned": "unpruned", "removal": "removal", "mask": "noise in their place", "soft": "soft weights"}
SCORES = {"random": "random scores", "scorer": "the scorer's scores", None: "all tokens"}


def section(lines: Sequence[Probe]) -> Section:
    """Return the table of one model, site and scorer."""
    rows, numbers, last = [], [], None
    for line in lines:
        group = line.setting["scores"], line.setting["keep"]
        if group != last:
            rows.append(group_row(_heading(line), len(COLUMNS)))
            last = group
        values = _values(line, _removal(line, lines))
        rows.append(Row(tuple(Cell(text) for text in (_form(line), *_texts(values)))))
        numbers.append({**_columns(line), **flat(values)})
    return Section(
        f"Noise and removal: {describe(lines[0])}", frame_of(numbers), _notes(lines[0]), COLUMNS, tuple(rows), "noise"
    )


def _columns(line: Probe) -> dict[str, Any]:
    setting = line.setting
    return {name: setting[name.lower()] for name in ("Form", "Scores", "Keep", "Tau")}


def _heading(line: Probe) -> str:
    scores = SCORES[line.setting["scores"]]
    return scores if line.setting["keep"] is None else f"{scores}, keep {line.setting['keep']}"


def _form(line: Probe) -> str:
    tau = line.setting["tau"]
    return FORMS[line.setting["form"]] + ("" if tau is None else f", tau {tau:g}")


def _removal(line: Probe, lines: Sequence[Probe]) -> Probe | None:
    """Return removal under the same scores and budget; None for removal itself and for the unpruned model."""
    if line.setting["form"] in ("unpruned", "removal"):
        return None
    wanted = {**line.setting, "form": "removal", "tau": None}
    return next((other for other in lines if other.setting == wanted), None)


def _values(line: Probe, removal: Probe | None) -> dict[str, Any]:
    values: dict[str, Any] = {name: statistics.mean_over(_percent(line, key)) for name, key in MEASURES.items()}
    values["Loss"] = float(np.mean(line.values["losses"]))
    if removal is not None:
        values |= {
            f"{name} minus removal": statistics.mean_over(_percent(line, key) - _percent(removal, key))
            for name, key in MEASURES.items()
        }
    return values


def _percent(line: Probe, name: str) -> Matrix:
    return 100 * np.array(line.values[name])


def _texts(values: dict[str, Any]) -> tuple[str, ...]:
    names = [f"{name} minus removal" for name in MEASURES]
    gaps = [interval(values[name], 1) if name in values else DASH for name in names]
    top1, top5 = (number(values[name].value) for name in MEASURES)
    return top1, gaps[0], top5, gaps[1], number(values["Loss"], 3)


def _notes(line: Probe) -> tuple[str, ...]:
    shared, what = line.shared, "caption tokens, teacher-forced" if line.site == "projector" else "classes"
    return (
        f"Accuracy in percent of {what}, over {shared['batches'] * shared['batch_size']} held-out images; 95 % "
        f"intervals by bootstrap over {shared['batches']} batches of {shared['batch_size']}.",
        "Noise and the scores are the same in every row of a group. Random scores are standard normal and tau is in "
        "units of their spread; for the scorer's, in units of the untrained one's.",
    )
