"""Figures of time, memory and FLOPs: Pareto fronts, the first token's time by stage, the sweep over visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench.report.figures import labels
from dpbench.report.figures.colours import STAGES, Look, looks
from dpbench.report.figures.data import Cost, CostTable, Point, front
from dpbench.report.figures.labels import End
from dpbench.report.figures.scores import COLUMN, PAGE, by_label, label_lines, line_axes

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
    lines, best = by_label(points), front(points)
    figure, axes = line_axes(len(lines))
    styles = looks({label: series[0].method for label, series in lines.items()})
    axes.step(
        [point.at for point in best], [point.value for point in best], where="post", color="#cccccc", linewidth=4,
        zorder=0, solid_capstyle="round",
    )  # fmt: skip
    for label, series in lines.items():
        _scatter(axes, series, styles[label])
    axes.set_xlabel(AXES[quantity])
    axes.set_ylabel("average retention (%)")
    labels.write_heading(figure, f"{table.heading}; grey: the Pareto front")
    highest = {label: max(series, key=lambda point: point.value) for label, series in lines.items()}
    ends = [End(label, point.at, point.value) for label, point in highest.items()]
    labels.label_beside(figure, axes, ends, styles, joined=False)
    return figure


def _scatter(axes: Axes, series: Sequence[Point], style: Look) -> None:
    at, value = [point.at for point in series], [point.value for point in series]
    axes.plot(at, value, color=style.colour, linewidth=0.5, alpha=0.5, zorder=1)
    for point in series:
        if point.low is not None and point.high is not None:
            axes.vlines(point.at, point.low, point.high, color=style.colour, linewidth=0.7, alpha=0.5, zorder=1)
    axes.plot(at, value, label=series[0].label, **{**style.line, "linestyle": ""})


def costs(table: CostTable) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one cost table, each with its name."""
    timed = [cost for cost in table.costs if cost.stages_ms]
    if timed:
        yield f"ttft-{table.backbone}", stages(timed, table)
    for quantity in ("ttft_ms", "peak_mib"):
        points = sweep_points(table.costs, quantity)
        if any(len(series) > 1 for series in by_label(points).values()):
            yield f"sweep-{quantity.split('_')[0]}-{table.backbone}", sweep(points, quantity, table)


def stages(timed: Sequence[Cost], table: CostTable) -> Figure:
    """Draw the time to the first token as bars of its stages: a panel per budget, a row per method, unpruned on top.

    Args:
        timed: costs with times.
        table: where they were measured.
    """
    budgets = _by_budget(timed)
    rows = _order(timed)
    wide = min(3, len(budgets))
    tall = ceil(len(budgets) / wide)
    figure = Figure(figsize=(COLUMN if wide == 1 else PAGE, 0.9 + tall * (0.15 * len(rows) + 0.45)))
    panels = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for axes, (budget, costs) in zip(panels.ravel(), budgets.items(), strict=False):
        _bars(axes, costs, rows)
        axes.set_title(budget, loc="left", fontsize=8)
    for axes in panels.ravel()[len(budgets) :]:
        axes.set_visible(False)
    panels[-1, (wide - 1) // 2].set_xlabel("time to first token by stage, medians (ms)")
    labels.write_heading(figure, table.heading)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=labels.FONT)
    return figure


def _by_budget(timed: Sequence[Cost]) -> dict[str, dict[str, Cost]]:
    """Return per budget the costs by label, the unpruned model's in each; it alone if nothing is pruned."""
    unpruned = {cost.label: cost for cost in timed if cost.budget == "all"}
    groups: dict[str, dict[str, Cost]] = {}
    for cost in timed:
        if cost.budget != "all":
            name = f"Keep {cost.budget}" if cost.budget.isdigit() else f"Prune {cost.budget}"
            groups.setdefault(name, dict(unpruned))[cost.label] = cost
    return groups or {"Unpruned": unpruned}


def _order(timed: Sequence[Cost]) -> list[str]:
    """Return the labels: unpruned first, then by the shortest time of each."""
    shortest: dict[str, tuple[bool, float]] = {}
    for cost in timed:
        key = (cost.budget != "all", sum(cost.stages_ms.values()))
        shortest[cost.label] = min(shortest.get(cost.label, key), key)
    return sorted(shortest, key=lambda label: shortest[label])


def _bars(axes: Axes, costs: Mapping[str, Cost], rows: Sequence[str]) -> None:
    left = [0.0] * len(rows)
    for stage, colour in STAGES.items():
        widths = [costs[label].stages_ms.get(stage, 0.0) if label in costs else 0.0 for label in rows]
        axes.barh(range(len(rows)), widths, 0.8, left=left, color=colour, label=stage, edgecolor="white", linewidth=0.3)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), rows, fontsize=labels.FONT - 0.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def sweep_points(table: Sequence[Cost], quantity: str) -> list[Point]:
    """Return a cost against the visual tokens the LLM reads; `quantity` is a field of `Cost`."""
    return [
        Point(cost.label, cost.method, cost.num_visual, value, budget=cost.budget)
        for cost in table
        if (value := getattr(cost, quantity)) is not None
    ]


def sweep(points: Sequence[Point], quantity: str, table: CostTable) -> Figure:
    """Draw a cost against the visual tokens the LLM reads, a line per method; the unpruned model's as a line across."""
    unpruned = next((point.value for point in points if point.method == "none"), None)
    lines = by_label(point for point in points if point.method != "none")
    figure, axes = line_axes(len(lines) + 1)
    styles = looks({label: series[0].method for label, series in lines.items()})
    for label, series in lines.items():
        at, value = [point.at for point in series], [point.value for point in series]
        axes.plot(at, value, label=label, **styles[label].line)
    axes.set_xlabel("visual tokens the LLM reads, mean over layers")
    axes.set_ylabel(AXES[quantity])
    axes.set_ylim(0, 1.06 * max(point.value for point in points))
    labels.write_heading(figure, table.heading)
    label_lines(figure, axes, lines, styles, unpruned)
    return figure
