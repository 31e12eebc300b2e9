"""Figures of scores: retention over budgets, benchmarks, the ablation, model sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench import tasks
from dpbench.report.figures import labels
from dpbench.report.figures.colours import Look, look, looks
from dpbench.report.figures.data import Point
from dpbench.report.figures.labels import End

COLUMN, PAGE = 3.3, 6.9
"""Widths of a paper's column and page in inches."""
FEW = 8
"""Series that a column has room for; with more of them a figure is as wide as a page, and has no bands."""


def line_axes(num_series: int) -> tuple[Figure, Axes]:
    """Return a figure for so many lines or sets of points, with room for their labels beside them."""
    tall = labels.height(num_series, 2.3)
    figure = Figure(figsize=(COLUMN if num_series <= FEW else PAGE, tall + 0.6))
    return figure, figure.subplots()


def retention(points: Sequence[Point]) -> Figure:
    """Draw average retention against the share of visual tokens kept, a line per method.

    With few lines, bands are their intervals; with many, the title says how wide they are.
    """
    lines = by_label(point for point in points if point.method != "none")
    figure, axes = line_axes(len(lines) + 1)
    styles = looks({label: series[0].method for label, series in lines.items()})
    for label, series in lines.items():
        _line(axes, series, styles[label], has_band=len(lines) <= FEW)
    if len(lines) > FEW:
        axes.set_title(_describe_intervals(points), loc="left", fontsize=labels.FONT, color="#555555")
    axes.set_xlabel("visual tokens read (%)")
    axes.set_ylabel("average retention (%)")
    label_lines(figure, axes, lines, styles, unpruned=100.0)
    return figure


def label_lines(
    figure: Figure, axes: Axes, lines: Mapping[str, Sequence[Point]], styles: Mapping[str, Look], unpruned: float | None
) -> None:
    """Label lines beside the axes, and draw the unpruned model as one across them.

    Args:
        figure: the axes' own.
        axes: with the lines.
        lines: the points of each, by label.
        styles: of the lines, by label.
        unpruned: the unpruned model's value, or None.
    """
    axes.margins(x=0.03)
    ends = [End(label, series[-1].at, series[-1].value) for label, series in lines.items()]
    if unpruned is not None:
        none = replace(look("none"), marker="")
        axes.axhline(unpruned, color=none.colour, linestyle=none.dash)
        axes.set_xlim(axes.get_xlim())
        ends.append(End("unpruned", axes.get_xlim()[1], unpruned))
        styles = {**styles, "unpruned": none}
    labels.label_beside(figure, axes, ends, styles, joined=True)


def _describe_intervals(points: Iterable[Point]) -> str:
    """Return how wide the points' intervals are, empty without any."""
    halves = [(point.high - point.low) / 2 for point in points if point.low is not None and point.high is not None]
    return (
        f"95 % intervals: \u00b1 {min(halves):.1f} to {max(halves):.1f}, median {median(halves):.1f}" if halves else ""
    )


def by_label(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Group points into series, each in the order of the horizontal axis; the best at its smallest cost comes first."""
    series: dict[str, list[Point]] = defaultdict(list)
    for point in sorted(points, key=lambda point: point.at):
        series[point.label].append(point)
    return dict(sorted(series.items(), key=lambda item: -item[1][0].value))


def _line(axes: Axes, series: Sequence[Point], style: Look, *, has_band: bool) -> None:
    at, value = [point.at for point in series], [point.value for point in series]
    if has_band and all(point.low is not None and point.high is not None for point in series):
        low, high = [point.low for point in series], [point.high for point in series]
        axes.fill_between(at, low, high, color=style.colour, alpha=0.13, linewidth=0)  # type: ignore[arg-type]
    axes.plot(at, value, label=series[0].label, **style.line)


def ablation(points: Sequence[Point]) -> Figure:
    """Draw retention per budget, a bar per trained variant, whiskers for the interval over training seeds."""
    variants = sorted({point.label for point in points}, key=lambda name: (name != "diffprune", name))
    budgets = sorted({point.at for point in points})
    styles = looks({variant: variant for variant in variants})
    figure = Figure(figsize=(COLUMN if len(variants) <= FEW else PAGE, 2.6 + 0.14 * len(variants) / 2))
    axes, width = figure.subplots(), 0.8 / len(variants)
    for number, variant in enumerate(variants):
        for point in (point for point in points if point.label == variant):
            left = budgets.index(point.at) - 0.4 + (number + 0.5) * width
            label = variant if point.at == budgets[0] else None
            axes.bar(left, point.value, width * 0.92, color=styles[variant].colour, label=label)
            if point.low is not None and point.high is not None:
                axes.vlines(left, point.low, point.high, color="black", linewidth=0.9)
    axes.set_xticks(range(len(budgets)), [f"{budget:.0f}" for budget in budgets])
    axes.set_xlabel("visual tokens kept")
    axes.set_ylabel("average retention (%)\nmean, 95 % interval over seeds")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2 if len(variants) <= FEW else 4, fontsize=labels.FONT)
    return figure


_SIZES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


def scale(curves: Mapping[str, Mapping[str, Sequence[Point]]], method: str) -> Figure:
    """Draw scores over the pruning rate, a panel per benchmark and a line per model size (the paper's Figure A1)."""
    names = [name for name in tasks.ALL if name in curves]
    models = sorted({model for name in names for model in curves[name]})
    columns = min(4, len(names))
    rows = ceil(len(names) / columns)
    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, 0.5 + 1.9 * rows))
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
