"""Figures of scores: retention over budgets, benchmarks, the ablation, model sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.report.figures.colours import look
from dpbench.report.figures.data import Point
from dpbench.report.groups import budget_heading
from dpbench.report.runs import Comparison, RowKey, scores_of

COLUMN, PAGE = 3.4, 7.0
"""Widths of a paper's column and page in inches."""


def retention(points: Sequence[Point]) -> Figure:
    """Draw average retention against the share of visual tokens kept, a line per method, bands for intervals."""
    figure = Figure(figsize=(PAGE * 0.75, 3.2))
    axes = figure.subplots()
    axes.axhline(100, color=look("none").colour, linestyle=look("none").dash, label="none (unpruned)")
    for series in by_label(point for point in points if point.method != "none").values():
        _line(axes, series)
    axes.set_xlabel("visual tokens read, mean over decoder layers (% of all)")
    axes.set_ylabel("average retention (%)")
    legend_beside(figure, axes)
    return figure


def by_label(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Group points into series, each in the order of the horizontal axis; the best at its smallest cost comes first."""
    series: dict[str, list[Point]] = defaultdict(list)
    for point in sorted(points, key=lambda point: point.at):
        series[point.label].append(point)
    return dict(sorted(series.items(), key=lambda item: -item[1][0].value))


def _line(axes: Axes, series: Sequence[Point]) -> None:
    style = look(series[0].method)
    at, value = [point.at for point in series], [point.value for point in series]
    if all(point.low is not None and point.high is not None for point in series):
        low, high = [point.low for point in series], [point.high for point in series]
        axes.fill_between(at, low, high, color=style.colour, alpha=0.13, linewidth=0)  # type: ignore[arg-type]
    axes.plot(at, value, color=style.colour, marker=style.marker, linestyle=style.dash, label=series[0].label)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """Put one legend outside, right of the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def benchmarks(comparison: Comparison) -> Figure:
    """Draw a panel per budget and in it a group of bars per benchmark, a bar per method; unpruned as a line."""
    groups = _by_budget(comparison)
    none = comparison.find("none")
    unpruned = scores_of(comparison.rows[none]) if none else {}
    figure = Figure(figsize=(PAGE, 0.6 + 1.75 * len(groups)))
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, keys in zip(panels, groups.values(), strict=True):
        _bars(axes, comparison, keys, unpruned)
        axes.set_title(budget_heading(comparison, keys[0]), loc="left")
        axes.set_ylabel("score (0-100)")
    titles = [tasks.ALL[name].title for name in comparison.tasks]
    panels[-1].set_xticks(range(len(titles)), titles, rotation=20)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5)
    return figure


def _by_budget(comparison: Comparison) -> dict[BudgetRequest, list[RowKey]]:
    groups: dict[BudgetRequest, list[RowKey]] = defaultdict(list)
    for key in comparison.rows:
        groups[key.budget].append(key)
    pruned = {budget: keys for budget, keys in groups.items() if not budget.keeps_all}
    return pruned or dict(groups)


def _bars(axes: Axes, comparison: Comparison, keys: Sequence[RowKey], unpruned: Mapping[str, float]) -> None:
    width = 0.84 / len(keys)
    for number, key in enumerate(keys):
        scores = scores_of(comparison.rows[key])
        at = [place for place, name in enumerate(comparison.tasks) if name in scores]
        high = [scores[comparison.tasks[place]] for place in at]
        left = [place - 0.42 + (number + 0.5) * width for place in at]
        axes.bar(left, high, width, color=look(key.method).colour, label=key.label, edgecolor="white", linewidth=0.3)
    for place, name in enumerate(comparison.tasks):
        if name in unpruned:
            label = "none (unpruned)" if place == 0 else "_nolegend_"
            axes.hlines(unpruned[name], place - 0.45, place + 0.45, color="black", linewidth=0.9, label=label)
    axes.set_ylim(0, 104)
    axes.set_xlim(-0.6, len(comparison.tasks) - 0.4)
    axes.grid(axis="x", visible=False)


def ablation(points: Sequence[Point]) -> Figure:
    """Draw retention per budget, a bar per trained variant, whiskers for the interval over training seeds."""
    variants = sorted({point.label for point in points}, key=lambda name: (name != "diffprune", name))
    budgets = sorted({point.at for point in points})
    figure = Figure(figsize=(PAGE * 0.75, 2.8))
    axes, width = figure.subplots(), 0.8 / len(variants)
    for number, variant in enumerate(variants):
        for point in (point for point in points if point.label == variant):
            left = budgets.index(point.at) - 0.4 + (number + 0.5) * width
            label = variant if point.at == budgets[0] else None
            axes.bar(left, point.value, width * 0.92, color=look(variant).colour, label=label)
            if point.low is not None and point.high is not None:
                axes.vlines(left, point.low, point.high, color="black", linewidth=0.9)
    axes.set_xticks(range(len(budgets)), [f"{budget:.0f}" for budget in budgets])
    axes.set_xlabel("visual tokens kept")
    axes.set_ylabel("average retention (%)\nmean and 95 % interval over seeds")
    axes.grid(axis="x", visible=False)
    legend_beside(figure, axes)
    return figure


_SIZES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


def scale(curves: Mapping[str, Mapping[str, Sequence[Point]]], method: str) -> Figure:
    """Draw scores over the pruning rate, a panel per benchmark and a line per model size (the paper's Figure A1)."""
    names = [name for name in tasks.ALL if name in curves]
    models = sorted({model for name in names for model in curves[name]})
    columns = min(4, len(names))
    rows = ceil(len(names) / columns)
    figure = Figure(figsize=(max(COLUMN, 1.9 * columns), 0.5 + 1.9 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for model, points in curves[name].items():
            colour, marker, dash = _SIZES[models.index(model) % len(_SIZES)]
            at, value = [point.at for point in points], [point.value for point in points]
            axes.plot(at, value, color=colour, marker=marker, linestyle=dash, label=model)
        axes.set_title(tasks.ALL[name].title)
        axes.set_xlabel("pruning rate (%)")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].set_ylabel(f"score of {method} (0-100)")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure
