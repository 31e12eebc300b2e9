"""Coherence of gradients (Figure 1c of the DiffPrune paper), with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpbench.probe import statistics
from dpbench.probe.statistics import Matrix, unpack
from dpbench.report.tables.probe_text import describe, find_reference, flat, group_heading, interval, scientific
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Row, Section, group_row, number
from dpbench.storage.record import Probe

SOURCES = {"both": "images and noise", "data": "images", "noise": "noise"}
COLUMNS = ("Variant", "Differ in", "Cosine", "DiffPrune's is", "Signal", "|g|", "Deployed", "after a step")


def section(lines: Sequence[Probe]) -> Section:
    """Return the table of one model, site and scorer."""
    rows, numbers, last = [], [], None
    for line in lines:
        if (group := _group(line)) != last:
            rows.append(group_row(group_heading(line), len(COLUMNS)))
            last = group
        values = _values(line, find_reference(line, lines))
        rows.append(Row(tuple(Cell(text) for text in _texts(line, values))))
        numbers.append({**_columns(line), **flat(values)})
    return Section(
        f"Gradient coherence: {describe(lines[0])}",
        frame_of(numbers),
        _notes(lines[0]),
        COLUMNS,
        tuple(rows),
        "coherence",
    )


def _columns(line: Probe) -> dict[str, Any]:
    setting = line.setting
    names = {"Variant": "way", "Keep": "keep", "Tau": "tau", "Differ in": "sources"}
    return {column: setting[name] for column, name in names.items()}


def _group(line: Probe) -> tuple[Any, ...]:
    return line.setting["keep"], line.setting["tau"]


def _values(line: Probe, reference: Probe | None) -> dict[str, Any]:
    gram = _gram(line)
    deployed = deployed_losses(line)
    return {
        "Cosine": statistics.coherence(gram),
        "Ratio": statistics.ratio(_gram(reference), gram) if reference not in (None, line) else None,
        "Signal": statistics.signal_to_noise(gram),
        "Norm": float(np.sqrt(np.diag(gram)).mean()),
        "Deployed loss": None if deployed is None else float(deployed[0].mean()),
        "Loss after a step": None if deployed is None else float(deployed[1:].mean(1).min()),
    }


def deployed_losses(line: Probe) -> Matrix | None:
    """Return the deployed loss at each step size, 0 first, of every held-out batch; None where none was measured."""
    if "after_step" not in line.values:
        return None
    return np.array(line.values["after_step"]).reshape(-1, line.shared["held_out"])


def _gram(line: Probe | None) -> Matrix:
    assert line is not None
    return unpack(tuple(line.values["gram"]))


def _texts(line: Probe, values: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        line.setting["way"],
        SOURCES[line.setting["sources"]],
        interval(values["Cosine"], 3),
        DASH if values["Ratio"] is None else interval(values["Ratio"], 1, unit="x"),
        number(values["Signal"], 3),
        scientific(values["Norm"]),
        number(values["Deployed loss"], 2),
        number(values["Loss after a step"], 2),
    )


def _notes(line: Probe) -> tuple[str, ...]:
    shared = line.shared
    return (
        f"Mean cosine over pairs of {shared['batches']} gradients, each over {shared['batch_size']} images, with its "
        "95 % interval (bootstrap over batches).",
        "DiffPrune's is: its cosine over this row's; unbounded where this row's interval holds 0.",
        "Signal: |mean g|^2 over mean |g|^2. |g|: mean norm of a gradient.",
        f"Deployed: loss under hard top-k on {shared['held_out'] * shared['batch_size']} held-out images, and the "
        "lowest after a step along the mean unit gradient: a coherent gradient is of use only if that falls.",
        f"tau in units of the spread of the untrained scorer's logits, {shared['spread']:.3f}.",
    )
