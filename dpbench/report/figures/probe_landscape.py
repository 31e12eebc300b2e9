"""Figures of the loss landscape (Figure 2 of the DiffPrune paper): lines, the steps along one of them, and maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpbench.probe.statistics import Matrix
from dpbench.report.figures import labels
from dpbench.report.figures.probe_panels import (
    MOST,
    STYLES,
    Panels,
    finite_range,
    grid,
    in_order,
    label_outer,
)
from dpbench.report.tables.probe_landscape import losses_by_way
from dpbench.report.tables.probe_text import describe
from dpbench.storage.record import Probe

Surfaces = Mapping[Any, Mapping[str, Matrix]]
"""Losses by budget and way: along lines (directions, points), or of a map (rows, points)."""
_ALONG = "distance (row lengths)"
_COLOURS = "GnBu"


def draw(lines: Sequence[Probe]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one model, site and scorer: those of each temperature, at the largest range."""
    groups, found_maps = losses_by_way(lines), maps_by_way(lines)
    for tau in sorted({tau for _, tau, _ in (*groups, *found_maps)}):
        about = f"{describe(lines[0])}, tau {tau:g}"
        found, size = _at_largest_range(groups, tau)
        if found:
            yield "probe-landscape", along_lines(found, size, about)
            yield "probe-landscape-steps", steps(found, size, about)
        found, size = _at_largest_range(found_maps, tau)
        if found:
            yield "probe-landscape-map", maps(found, size, about)


def maps_by_way(lines: Sequence[Probe]) -> dict[tuple[Any, ...], dict[str, Matrix]]:
    """Return every complete map, (rows, points), by way, for each budget, temperature and range."""
    found: dict[tuple[Any, ...], dict[int, tuple[float, ...]]] = defaultdict(dict)
    for line in lines:
        setting = line.setting
        if "map_row" in setting:
            key = setting["keep"], setting["tau"], setting["range"], setting["way"], setting["map_points"]
            found[key][setting["map_row"]] = tuple(line.values["losses"])
    complete: dict[tuple[Any, ...], dict[str, Matrix]] = defaultdict(dict)
    for *group, way, num in sorted(found, key=lambda key: key[-1]):
        rows = found[*group, way, num]
        if len(rows) == num:
            complete[tuple(group)][way] = np.array([rows[number] for number in range(num)])
    return complete


def _at_largest_range(
    groups: Mapping[tuple[Any, ...], Mapping[str, Matrix]], tau: float
) -> tuple[dict[Any, Mapping[str, Matrix]], float]:
    """Return the losses of one temperature by budget, at the largest range that was measured, and that range."""
    size = max((size for _, one, size in groups if one == tau), default=0.0)
    chosen = {keep: ways for (keep, one, at), ways in groups.items() if (one, at) == (tau, size)}
    return {keep: chosen[keep] for keep in sorted(chosen)}, size


def _panels_of(found: Surfaces, tall: float, **shared: Any) -> tuple[Figure, dict[tuple[Any, str], Axes], Panels]:
    """Return a figure with a panel per budget and way: the ways of a budget side by side, as far as there is room."""
    names = in_order([name for ways in found.values() for name in ways])
    columns = min(MOST, len(names))
    each = columns * ceil(len(names) / columns)
    figure, panels = grid(each * len(found), tall, columns=columns, sharex=True, sharey=True, **shared)
    placed: dict[tuple[Any, str], Axes] = {}
    for number, (keep, ways) in enumerate(found.items()):
        block = panels.ravel()[number * each : (number + 1) * each]
        placed |= {(keep, name): axes for name, axes in zip(names, block, strict=False) if name in ways}
    for axes in panels.ravel():
        axes.set_visible(axes in placed.values())
    for (keep, name), axes in placed.items():
        title = name if len(found) == 1 else f"{name}, keep {keep:g}"
        axes.set_title(title, loc="left", fontsize=labels.FONT)
    return figure, placed, panels


def along_lines(found: Surfaces, size: float, about: str) -> Figure:
    """Draw the loss along every direction, thin, and their mean: a panel per budget and way.

    Args:
        found: losses, (directions, points).
        size: range of the lines.
        about: what was measured.
    """
    figure, placed, panels = _panels_of(found, 1.35)
    for (keep, name), axes in placed.items():
        losses, colour = found[keep][name], STYLES[name].colour
        along = np.linspace(-size, size, losses.shape[1])
        axes.plot(along, losses.T, color=colour, linewidth=0.5, alpha=0.55)
        axes.plot(along, losses.mean(0), color=colour, linewidth=1.8, label=name)
    num = max(len(losses) for ways in found.values() for losses in ways.values())
    label_outer(panels, _ALONG, "loss")
    labels.write_heading(figure, f"{about}{_budgets(found)}; thin: {num} directions, thick: their mean")
    return figure


def _budgets(found: Surfaces) -> str:
    """Return the budget, where panels do not say it because there is only one."""
    return f", keep {next(iter(found)):g}" if len(found) == 1 else ""


def steps(found: Surfaces, size: float, about: str) -> Figure:
    """Draw |L(i+1) - L(i)| along the first direction (Figure 2c), and its mean: a panel per budget and way.

    Args:
        found: losses, (directions, points).
        size: range of the lines.
        about: what was measured.
    """
    figure, placed, panels = _panels_of(found, 1.35)
    for (keep, name), axes in placed.items():
        losses, colour = found[keep][name][0], STYLES[name].colour
        jumps = np.abs(np.diff(losses))
        axes.stairs(jumps, np.linspace(-size, size, len(losses)), fill=True, color=colour, alpha=0.75)
        axes.axhline(jumps.mean(), color="black", linestyle="--", linewidth=0.8)
    panels[0, 0].set_ylim(bottom=0)  # of all: they share it
    label_outer(panels, _ALONG, "step of the loss")
    labels.write_heading(figure, f"{about}{_budgets(found)}; |L(i+1) - L(i)|, first direction; dashed: its mean")
    return figure


def maps(found: Surfaces, size: float, about: str) -> Figure:
    """Draw the loss over two directions as contours (Figures 2a and 2b), the same colour for the same loss everywhere.

    Args:
        found: losses, (rows, points).
        size: range of the maps.
        about: what was measured.
    """
    figure, placed, panels = _panels_of(found, 1.5)
    flat = np.concatenate([losses.ravel() for ways in found.values() for losses in ways.values()])
    levels = MaxNLocator(14).tick_values(*finite_range(flat))
    for (keep, name), axes in placed.items():
        losses = np.ma.masked_invalid(found[keep][name])
        along = np.linspace(-size, size, losses.shape[0])
        filled = axes.contourf(along, along, losses, levels=levels, cmap=_COLOURS)
        axes.contour(along, along, losses, levels=levels, colors="black", linewidths=0.3, alpha=0.6)
        axes.plot(0, 0, "+", color="black", markersize=5, markeredgewidth=0.8)
        axes.set_aspect("equal")
        axes.grid(visible=False)
    bar = figure.colorbar(filled, ax=panels.ravel().tolist(), label="loss", aspect=30 * len(panels), pad=0.02)
    bar.ax.tick_params(labelsize=labels.FONT)
    label_outer(panels, "distance (row lengths)", "second direction")
    labels.write_heading(figure, f"{about}{_budgets(found)}; cross: the scorer as it is")
    return figure
