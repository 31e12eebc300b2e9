"""Figures of gradient coherence (Figure 1c of the DiffPrune paper), and of what a step along the mean gradient does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dpbench.probe import statistics
from dpbench.probe.statistics import unpack
from dpbench.report.figures import labels
from dpbench.report.figures.data import Point
from dpbench.report.figures.probe_panels import MOST, STYLES, draw_whiskers, grid, in_order, label_outer, write_legend
from dpbench.report.tables.probe_coherence import deployed_losses
from dpbench.report.tables.probe_text import describe
from dpbench.storage.record import Probe

_TALL = 1.9


def draw(lines: Sequence[Probe]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one model, site and training, or fresh scorer; batches differ in images and noise.

    Cosines are over the temperature, or over the training's steps if there are several. What a step along the mean
    gradient does is drawn for the last scorer.
    """
    both = [line for line in lines if line.setting["sources"] == "both"]
    if both:
        yield "probe-coherence", cosines(both)
        last = max(line.step for line in both)
        if stepped := [line for line in both if line.step == last and "after_step" in line.values]:
            yield "probe-coherence-step", after_step(stepped)


def cosines(lines: Sequence[Probe]) -> Figure:
    """Draw the mean cosine of gradients with its interval: a panel per budget, over tau or over training steps."""
    if len({line.step for line in lines}) == 1:
        panels_of, at, columns = _groups(lines, ("keep",)), _tau, MOST
    else:
        panels_of, at, columns = _groups(lines, ("keep", "tau")), _step, _num_taus(lines)
    figure, panels = grid(len(panels_of), _TALL, columns=columns, sharex=True, sharey=True)
    for axes, (title, group) in zip(panels.ravel(), panels_of.items(), strict=False):
        axes.axhline(0, color="#777777", linewidth=0.8, zorder=1)
        _draw_ways(axes, group, lambda line: [_cosine_point(line, at)])
        axes.set_title(title, loc="left")
        axes.margins(x=0.12)
    if at is _tau:
        _scale_by_tau(list(panels.ravel()), sorted({_tau(line) for line in lines}))
    across = "temperature (score spreads)" if at is _tau else "training step"
    label_outer(panels, across, "mean cosine of gradients")
    shared, last = lines[0].shared, max(lines, key=_step)
    about = describe(last) + ("" if at is _tau else ", and before")
    batches = f"{shared['batches']} batches of {shared['batch_size']}"
    labels.write_heading(figure, f"{about}; {batches}, 95 % intervals over batches")
    write_legend(figure, panels)
    return figure


def _tau(line: Probe) -> float:
    return float(line.setting["tau"])


def _step(line: Probe) -> float:
    return float(line.step)


def _groups(lines: Sequence[Probe], fields: Sequence[str]) -> dict[str, list[Probe]]:
    """Return the lines of every panel by its title, in the order of the fields' values."""
    groups: dict[tuple[Any, ...], list[Probe]] = {}
    for line in lines:
        groups.setdefault(tuple(line.setting[field] for field in fields), []).append(line)
    return {
        ", ".join(f"{field} {value:g}" for field, value in zip(fields, key, strict=True)).capitalize(): groups[key]
        for key in sorted(groups)
    }


def _draw_ways(axes: Axes, lines: Iterable[Probe], points_of: Callable[[Probe], Iterable[Point]]) -> None:
    """Draw a series per way to train, of the points of all its lines."""
    series: dict[str, list[Point]] = {}
    for line in lines:
        series.setdefault(line.setting["way"], []).extend(points_of(line))
    names = in_order(list(series))
    sorted_series = [sorted(series[name], key=lambda point: point.at) for name in names]
    draw_whiskers(axes, sorted_series, [STYLES[name] for name in names])


def _cosine_point(line: Probe, at: Callable[[Probe], float]) -> Point:
    name, found = line.setting["way"], statistics.coherence(unpack(tuple(line.values["gram"])))
    return Point(name, name, at(line), found.value, found.low, found.high)


def _scale_by_tau(panels: Sequence[Axes], taus: Sequence[float]) -> None:
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(taus)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def after_step(lines: Sequence[Probe]) -> Figure:
    """Draw the deployed loss over the size of a step against the mean unit gradient, a panel per budget and tau.

    All start at the loss of the scorer as it is; intervals are of the change, over the same held-out batches.
    """
    panels_of = _groups(lines, ("keep", "tau"))
    figure, panels = grid(len(panels_of), _TALL, columns=_num_taus(lines), sharex=True, sharey=True)
    for axes, (title, group) in zip(panels.ravel(), panels_of.items(), strict=False):
        _draw_ways(axes, group, _loss_points)
        axes.set_title(title, loc="left")
        axes.margins(x=0.08)
        _scale_by_size(axes, lines[0].shared["step_sizes"])
    label_outer(panels, "step (% of the weights' norm)", "deployed loss")
    shared = lines[0].shared
    held_out = f"{shared['held_out']} held-out batches of {shared['batch_size']}"
    about = f"{describe(lines[0])}; steps against the mean unit gradient, 95 % intervals of the change over {held_out}"
    labels.write_heading(figure, about)
    write_legend(figure, panels)
    return figure


def _num_taus(lines: Sequence[Probe]) -> int:
    """Return panels side by side: temperatures, so that a row is a budget, if they fit."""
    num = len({_tau(line) for line in lines})
    return num if 1 < num <= MOST else MOST


def _loss_points(line: Probe) -> Iterator[Point]:
    losses, name = deployed_losses(line), line.setting["way"]
    assert losses is not None
    for size, row in zip((0.0, *line.shared["step_sizes"]), losses, strict=True):
        change, start = statistics.mean_over(row - losses[0]), losses[0].mean()
        yield Point(name, name, 100 * size, row.mean(), start + change.low, start + change.high)


def _scale_by_size(axes: Axes, shares: Sequence[float]) -> None:
    """Show 0 and the sizes, whose distances are ratios."""
    sizes = [100 * share for share in sorted(shares)]
    axes.set_xscale("symlog", linthresh=sizes[0], linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator([0.0, *sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
