"""Figure of noise against removal under the same scores (Figure 4b of the DiffPrune paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench.probe import statistics
from dpbench.report.figures import labels
from dpbench.report.figures.colours import Look, look
from dpbench.report.figures.data import Point
from dpbench.report.figures.probe_panels import draw_whiskers, grid, write_legend
from dpbench.report.tables.probe_noise import FORMS, SCORES
from dpbench.report.tables.probe_text import describe
from dpbench.storage.record import Probe

_LOOKS = (
    Look("#0072B2", "s"),
    Look("#D55E00", "D", "--"),
    Look("#E69F00", "o", "-."),
    Look("#CC79A7", "^", "-."),
    Look("#009E73", "v", "-."),
    Look("#56B4E9", "P", "-."),
)
"""Removal, noise in their place, and soft weights by temperature; more temperatures begin again at the third."""


def draw(lines: Sequence[Probe]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of one model, site and scorer."""
    if panels_of := _groups(lines):
        yield "probe-noise", accuracy(panels_of, lines)


def _groups(lines: Sequence[Probe]) -> dict[tuple[str, bool], list[Probe]]:
    """Return the pruned lines of every panel: random scores first, and counts apart from shares."""
    groups: dict[tuple[str, bool], list[Probe]] = {}
    for line in lines:
        if (keep := line.setting["keep"]) is not None:
            groups.setdefault((line.setting["scores"], isinstance(keep, float)), []).append(line)
    return {key: groups[key] for key in sorted(groups, key=lambda key: (list(SCORES).index(key[0]), key[1]))}


def accuracy(panels_of: dict[tuple[str, bool], list[Probe]], lines: Sequence[Probe]) -> Figure:
    """Draw top-1 accuracy over the budget with its interval, a line per form; the unpruned model's across.

    Args:
        panels_of: pruned lines by scores and by whether budgets are shares.
        lines: those and the unpruned model's.
    """
    forms = sorted({_form(line) for group in panels_of.values() for line in group}, key=_order)
    figure, panels = grid(len(panels_of), 2.0, sharey=True)
    unpruned = next((line for line in lines if line.setting["keep"] is None), None)
    for axes, ((scores, is_share), group) in zip(panels.ravel(), panels_of.items(), strict=False):
        series = {form: sorted(_points(group, form, is_share), key=lambda point: point.at) for form in forms}
        present = [form for form in forms if series[form]]
        draw_whiskers(axes, [series[form] for form in present], [_look(form, forms) for form in present])
        if unpruned is not None:
            _across(axes, _top1(unpruned).value)
        axes.set_title(SCORES[scores].capitalize(), loc="left")
        axes.set_xlabel("visual tokens kept (%)" if is_share else "visual tokens kept")
        axes.margins(x=0.08)
    panels[0, 0].set_ylabel("top-1 accuracy (%)")
    shared, what = lines[0].shared, "caption tokens" if lines[0].site == "projector" else "images"
    batches = f"{shared['batches']} batches of {shared['batch_size']}"
    labels.write_heading(figure, f"{describe(lines[0])}; of {what}, 95 % intervals over {batches}")
    write_legend(figure, panels)
    return figure


def _form(line: Probe) -> tuple[str, Any]:
    return line.setting["form"], line.setting["tau"]


def _order(form: tuple[str, Any]) -> tuple[int, float]:
    return list(FORMS).index(form[0]), form[1] or 0.0


def _points(lines: Sequence[Probe], form: tuple[str, Any], is_share: bool) -> Iterator[Point]:
    name = FORMS[form[0]] + ("" if form[1] is None else f", tau {form[1]:g}")
    for line in lines:
        if _form(line) == form:
            found, keep = _top1(line), line.setting["keep"]
            yield Point(name, form[0], 100 * keep if is_share else keep, found.value, found.low, found.high)


def _top1(line: Probe) -> statistics.Interval:
    return statistics.mean_over(100 * np.array(line.values["top1"]))


def _look(form: tuple[str, Any], forms: Sequence[tuple[str, Any]]) -> Look:
    if form[0] != "soft":
        return _LOOKS[_order(form)[0] - 1]
    place = [one for one in forms if one[0] == "soft"].index(form)
    return _LOOKS[2 + place % (len(_LOOKS) - 2)]


def _across(axes: Axes, value: float) -> None:
    none = replace(look("none"), marker="")
    axes.axhline(value, color=none.colour, linestyle=none.dash, label="unpruned")
