"""Figures of time, memory and FLOPs: Pareto fronts, the first token's time by stage, the sweep over visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench.report.figures.colours import STAGES, look
from dpbench.report.figures.data import Cost, CostTable, Point, front
from dpbench.report.figures.scores import PAGE, by_label, legend_beside

AXES = {
    "ttft_ms": "time to first token, median (ms)",
    "gflop": "GFLOP up to the first token (2 per multiply-add)",
    "peak_mib": "peak memory without weights (MiB)",
}
"""Labels of the axes by quantity."""


def pareto(points: Sequence[Point], quantity: str, table: CostTable) -> Figure:
    """Draw average retention against a cost, with the Pareto front.

    Args:
        points: a point per method and budget.
        quantity: a key of `AXES`.
        table: where the costs were measured.
    """
    figure = Figure(figsize=(PAGE * 0.75, 3.2))
    axes, best = figure.subplots(), front(points)
    axes.step(
        [point.at for point in best], [point.value for point in best], where="post", color="#bbbbbb", linewidth=4,
        label="Pareto front", zorder=0, solid_capstyle="round",
    )  # fmt: skip
    for series in by_label(points).values():
        _scatter(axes, series)
    axes.set_xlabel(AXES[quantity])
    axes.set_ylabel("average retention (%)")
    axes.set_title(table.heading, loc="left")
    legend_beside(figure, axes)
    return figure


def _scatter(axes: Axes, series: Sequence[Point]) -> None:
    style = look(series[0].method)
    at, value = [point.at for point in series], [point.value for point in series]
    axes.plot(at, value, color=style.colour, marker=style.marker, linestyle="", label=series[0].label)
    for point in series:
        if point.low is not None and point.high is not None:
            axes.vlines(point.at, point.low, point.high, color=style.colour, linewidth=0.8, alpha=0.6)


def costs(table: CostTable) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one cost table, each with its name."""
    timed = [cost for cost in table.costs if cost.stages_ms]
    if timed:
        yield f"ttft-{table.backbone}", stages(timed, table.heading)
    for quantity in ("ttft_ms", "peak_mib"):
        points = sweep_points(table.costs, quantity)
        if any(len(series) > 1 for series in by_label(points).values()):
            yield f"sweep-{quantity.split('_')[0]}-{table.backbone}", sweep(points, quantity, table.heading)


def stages(timed: Sequence[Cost], heading: str) -> Figure:
    """Draw the time to the first token, a horizontal bar per method and budget, stacked by stage."""
    figure = Figure(figsize=(PAGE, 1.1 + 0.19 * len(timed)))
    axes = figure.subplots()
    ordered = sorted(timed, key=lambda cost: sum(cost.stages_ms.values()), reverse=True)
    left = [0.0] * len(ordered)
    for stage, colour in STAGES.items():
        widths = [cost.stages_ms.get(stage, 0.0) for cost in ordered]
        if any(widths):
            axes.barh(range(len(ordered)), widths, 0.8, left=left, color=colour, label=stage, edgecolor="white")
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(ordered)), [cost.name for cost in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel("time to first token by stage, medians (ms)")
    axes.set_title(heading, loc="left")
    axes.grid(axis="y", visible=False)
    legend_beside(figure, axes)
    return figure


def sweep_points(table: Sequence[Cost], quantity: str) -> list[Point]:
    """Return a cost against the visual tokens the LLM reads; `quantity` is a field of `Cost`."""
    return [
        Point(cost.label, cost.method, cost.num_visual, value, budget=cost.budget)
        for cost in table
        if (value := getattr(cost, quantity)) is not None
    ]


def sweep(points: Sequence[Point], quantity: str, heading: str) -> Figure:
    """Draw a cost against the visual tokens the LLM reads, a line per method."""
    figure = Figure(figsize=(PAGE * 0.75, 3.2))
    axes = figure.subplots()
    for series in by_label(points).values():
        style = look(series[0].method)
        at, value = [point.at for point in series], [point.value for point in series]
        axes.plot(at, value, color=style.colour, marker=style.marker, linestyle=style.dash, label=series[0].label)
    axes.set_xlabel("visual tokens the LLM reads, mean over layers")
    axes.set_ylabel(AXES[quantity])
    axes.set_ylim(bottom=0)
    axes.set_title(heading, loc="left")
    legend_beside(figure, axes)
    return figure
