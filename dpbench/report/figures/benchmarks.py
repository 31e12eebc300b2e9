"""The scores of every method and benchmark as a map: a panel per budget, a row per method, a colour per share kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.report import counted
from dpbench.report.figures.scores import COLUMN, PAGE
from dpbench.report.retention import averages
from dpbench.report.runs import Comparison, RowKey, scores_of

_PANELS = 3
"""Panels side by side: ten benchmarks of 0.19 inch each, three times, and the methods' names fill a page."""
_ROW = 0.15
_FONT = 6.0
_COLOURS = colormaps["GnBu"]
_GREY = (0.91, 0.91, 0.91)


def draw(comparison: Comparison) -> Figure:
    """Draw the scores, rounded to whole points, over the share of the unpruned score as a colour.

    Benchmarks that do not count for retention have no share and are grey.
    """
    budgets = _by_budget(comparison)
    rows = _order(comparison, budgets)
    tall, wide = ceil(len(budgets) / _PANELS), min(_PANELS, len(budgets))
    width = COLUMN if wide == 1 else PAGE
    figure = Figure(figsize=(width, 0.75 + tall * (_ROW * len(rows) + 0.65)))
    panels = figure.subplots(tall, wide, squeeze=False, sharey=True).ravel()
    colours = ScalarMappable(Normalize(_lowest(comparison, budgets), 100), _COLOURS)
    for axes, (budget, keys) in zip(panels, budgets.items(), strict=False):
        _panel(axes, comparison, {key.label: key for key in keys}, rows, colours)
        axes.set_title(_title(budget), loc="left", fontsize=8)
    for axes in panels[len(budgets) :]:
        axes.set_visible(False)
    bar = figure.colorbar(colours, ax=list(panels), orientation="horizontal", fraction=0.03, aspect=60, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(_explain(comparison), fontsize=7)
    bar.ax.tick_params(labelsize=_FONT)
    return figure


def _by_budget(comparison: Comparison) -> dict[BudgetRequest, list[RowKey]]:
    """Return the rows of every budget; those that keep everything only where there are no others."""
    groups: dict[BudgetRequest, list[RowKey]] = defaultdict(list)
    for key in comparison.rows:
        groups[key.budget].append(key)
    pruned = {budget: keys for budget, keys in groups.items() if not budget.keeps_all}
    return pruned or dict(groups)


def _order(comparison: Comparison, budgets: Mapping[BudgetRequest, Sequence[RowKey]]) -> list[str]:
    """Return the rows' labels: those that keep most at their smallest budget first, and the unpruned model on top."""
    found, best = averages(comparison), dict[str, float]()
    for keys in budgets.values():
        best |= {key.label: found.get(key, -1.0) for key in keys}
    none = comparison.find("none")
    ordered = sorted(best, key=lambda label: (-best[label], label))
    return [none.label, *(label for label in ordered if label != none.label)] if none else ordered


def _shares(comparison: Comparison, key: RowKey) -> dict[str, float]:
    """Return a row's scores in percent of the unpruned model's, on the benchmarks that count."""
    none = comparison.find("none")
    unpruned = scores_of(comparison.rows[none]) if none else {}
    names = counted.find(comparison).tasks
    return {
        name: 100 * score / unpruned[name] for name, score in scores_of(comparison.rows[key]).items() if name in names
    }


def _lowest(comparison: Comparison, budgets: Mapping[BudgetRequest, Iterable[RowKey]]) -> float:
    shares = [share for keys in budgets.values() for key in keys for share in _shares(comparison, key).values()]
    return min([*shares, 90.0])


def _panel(
    axes: Axes, comparison: Comparison, keys: Mapping[str, RowKey], rows: Sequence[str], colours: ScalarMappable
) -> None:
    none = comparison.find("none")
    for place, label in enumerate(rows):
        if key := keys.get(label) or (none if none and none.label == label else None):
            scores, shares = scores_of(comparison.rows[key]), _shares(comparison, key)
            for column, name in enumerate(comparison.tasks):
                if name in scores:
                    _cell(axes, (column, place), scores[name], shares.get(name), colours)
    names = [tasks.ALL[name].title for name in comparison.tasks]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_FONT)
    axes.set_yticks(range(len(rows)), rows, fontsize=_FONT + 0.5)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Axes, at: tuple[int, int], score: float, share: float | None, colours: ScalarMappable) -> None:
    red, green, blue = colours.to_rgba(np.array([share]))[0, :3] if share is not None else _GREY
    corner = (at[0] - 0.5, at[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=(red, green, blue), edgecolor="white", linewidth=0.6))
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    ink = "black" if is_light else "white"
    number = axes.text(*at, f"{score:.0f}", ha="center", va="center_baseline", fontsize=_FONT, color=ink)
    number.set_in_layout(False)  # inside its cell: the layout need not measure it


def _title(budget: BudgetRequest) -> str:
    if budget.keeps_all:
        return "Unpruned"
    return f"Keep {budget.keep}" if budget.keep is not None else f"Prune {100 * (budget.prune_rate or 0):.1f} %"


def _explain(comparison: Comparison) -> str:
    is_short = bool(counted.find(comparison).left_out)
    return "score (0-100); colour: % of the unpruned score" + ("; grey: does not count" if is_short else "")
