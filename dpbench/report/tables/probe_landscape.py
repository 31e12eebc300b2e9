"""Roughness of the scorer's loss along random directions (Figure 2 of the DiffPrune paper)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpbench.probe import statistics
from dpbench.probe.statistics import Interval, Matrix
from dpbench.report.tables.probe_text import REFERENCE, describe, flat, interval, scientific
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Row, Section, group_row
from dpbench.storage.record import Probe

COLUMNS = ("Variant", "Mean step", "over DiffPrune's", "Mean 2nd diff.", "over DiffPrune's", "Largest step / mean")
MEASURES = {"Mean step": "step", "Mean second difference": "second"}
"""Columns of the frame that are compared with DiffPrune's, and their names in `roughness`."""
Lines = dict[tuple[Any, ...], dict[str, Matrix]]


def section(lines: Sequence[Probe]) -> Section:
    """Return the table of one model, site and scorer; the rows of a map are for its figure only."""
    rows, numbers = [], []
    for (keep, tau, size), by_way in losses_by_way(lines).items():
        rows.append(group_row(f"keep {keep}, tau {tau:g}, from -{size:g} to {size:g}", len(COLUMNS)))
        reference = by_way.get(REFERENCE)
        for way, losses in by_way.items():
            values = _values(losses, None if way == REFERENCE else reference)
            rows.append(Row(tuple(Cell(text) for text in (way, *_texts(values)))))
            numbers.append({"Variant": way, "Keep": keep, "Tau": tau, "Range": size, **flat(values)})
    return Section(
        f"Loss landscape: {describe(lines[0])}", frame_of(numbers), _notes(lines), COLUMNS, tuple(rows), "landscape"
    )


def losses_by_way(lines: Sequence[Probe]) -> Lines:
    """Return the losses of every line, (directions, points), by variant, for each budget, temperature and range."""
    found: dict[tuple[Any, ...], dict[str, dict[int, tuple[float, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        setting = line.setting
        if "line" in setting:
            group = setting["keep"], setting["tau"], setting["range"]
            found[group][setting["way"]][setting["line"]] = tuple(line.values["losses"])
    return {
        group: {way: np.array([by_line[number] for number in sorted(by_line)]) for way, by_line in by_way.items()}
        for group, by_way in found.items()
    }


def roughness(losses: Matrix) -> dict[str, Matrix]:
    """Return the mean step, mean second difference and largest step of every direction, (directions,) each."""
    steps, second = np.abs(np.diff(losses, axis=1)), np.abs(np.diff(losses, n=2, axis=1))
    return {"step": steps.mean(1), "second": second.mean(1), "largest": steps.max(1)}


def _values(losses: Matrix, reference: Matrix | None) -> dict[str, Interval]:
    rough = roughness(losses)
    values = {name: statistics.mean_over(rough[key]) for name, key in MEASURES.items()}
    values["Largest step over mean"] = statistics.ratio_of_means(rough["largest"], rough["step"])
    if reference is not None and len(reference) == len(losses):
        smooth = roughness(reference)
        values |= {
            f"{name} ratio": statistics.ratio_of_means(rough[key], smooth[key]) for name, key in MEASURES.items()
        }
    return values


def _texts(values: dict[str, Interval]) -> tuple[str, ...]:
    names = [f"{name} ratio" for name in MEASURES]
    ratios = [interval(values[name], 1, unit="x") if name in values else DASH for name in names]
    step, second = (scientific(values[name].value) for name in MEASURES)
    return step, ratios[0], second, ratios[1], interval(values["Largest step over mean"], 1)


def _notes(lines: Sequence[Probe]) -> tuple[str, ...]:
    shared = lines[0].shared
    directions = len({line.setting["line"] for line in lines if "line" in line.setting})
    return (
        f"Step: |L(i+1) - L(i)| along {directions} filter-normalised directions of {shared['points']} points, the same "
        "images and noise at every point; 95 % intervals by bootstrap over directions, ratios in pairs.",
        "The step shrinks with the distance of points, so only ratios compare. A line of few jumps has a small mean "
        "step, large second differences and a largest step far above the mean.",
        f"tau in units of the spread of the untrained scorer's logits, {shared['spread']:.3f}.",
    )
