"""What the figures of `dpbench probe` have in common: a style per way to train, panels, whiskers and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from dpbench.probe.settings import WAYS
from dpbench.report.figures import labels
from dpbench.report.figures.colours import Look, look
from dpbench.report.figures.data import Point
from dpbench.report.figures.scores import COLUMN, PAGE

STYLES = {name: look(name) for name in WAYS}
"""The style of every way to train, the same in all figures."""
MOST = 4
"""Panels side by side at most."""
_SIDEWAYS, _ALL_SIDEWAYS = 3.0, 14.0
"""Printed points from one series' whisker to the next one's, and from the first one's to the last one's, at most."""
Panels = NDArray[Any]
"""Axes, (rows, columns)."""


def in_order(names: Sequence[str]) -> list[str]:
    """Return ways to train without repetition, in the order of `WAYS`."""
    return [name for name in STYLES if name in set(names)]


def grid(num: int, tall: float, *, columns: int = MOST, **shared: Any) -> tuple[Figure, Panels]:
    """Return a figure with so many panels, those of the last row that are not needed invisible.

    Args:
        num: panels.
        tall: inches of a panel with its labels.
        columns: panels side by side at most.
        shared: of matplotlib's `subplots`.
    """
    columns = min(columns, num)
    rows = ceil(num / columns)
    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, 0.6 + tall * rows))
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in panels.ravel()[num:]:
        axes.set_visible(False)
    return figure, panels


def draw_whiskers(axes: Axes, series: Sequence[Sequence[Point]], styles: Sequence[Look]) -> None:
    """Draw a line per series with an interval at each point, set side by side so that none hides another.

    Only the drawing is moved sideways, by a few printed points: the lines' data are the points'.
    """
    apart = min(_SIDEWAYS, _ALL_SIDEWAYS / max(1, len(series) - 1))
    for number, (points, style) in enumerate(zip(series, styles, strict=True)):
        at, value = [point.at for point in points], [point.value for point in points]
        low, high = ([getattr(point, end) for point in points] for end in ("low", "high"))
        sideways = apart * (number - (len(series) - 1) / 2)
        moved = axes.transData + ScaledTranslation(sideways / 72, 0, axes.figure.dpi_scale_trans)
        ends = axes.vlines(at, low, high, color=style.colour, linewidth=0.9, alpha=0.7)
        (line,) = axes.plot(at, value, label=points[0].label, **style.line)
        for artist in (ends, line):
            artist.set_transform(moved)


def write_legend(figure: Figure, panels: Panels) -> None:
    """Name every series of any panel below the panels, in one row if the figure is wide enough, else in even ones."""
    named: dict[str, Any] = {}
    for axes in panels.ravel():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    room, widths = figure.get_figwidth() * 72, [len(label) * 0.55 * labels.FONT + 36 for label in named]
    columns = len(named) if sum(widths) < room else max(1, int(room / max(widths)))
    columns = ceil(len(named) / ceil(len(named) / columns))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, fontsize=labels.FONT)


def label_outer(panels: Panels, across: str, up: str) -> None:
    """Write what the axes show, and their numbers, at the outer edge of the panels."""
    for column in panels.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.set_xlabel(across, fontsize=labels.FONT)
    for axes in panels.ravel():
        axes.label_outer()
    panels[0, 0].figure.supylabel(up, fontsize=8)


def finite_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the smallest and the largest of the numbers that are finite."""
    finite = values[np.isfinite(values)]
    return float(finite.min()), float(finite.max())
