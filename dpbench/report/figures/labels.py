"""Text around a figure's axes: a heading above, and beside them each series' name, as level with its line as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from dpbench.report.figures.colours import Look

FONT = 7.0
"""Size of labels in points: readable where the figure is printed at its own width."""
PITCH = 1.3 * FONT
"""Points from one label's middle to the next one's."""
_MARKER_AT, _TEXT_AT = 14.0, 20.0
"""Points right of the axes at which a label's marker and its text are."""


@dataclass(frozen=True, slots=True)
class End:
    """The point of a series that its label belongs to.

    Attributes:
        label: the series' name.
        at: the point's horizontal place, as in the data.
        value: its height.
    """

    label: str
    at: float
    value: float


def write_heading(figure: Figure, text: str) -> None:
    """Write above a figure what it was measured on, in lines as long as its width allows."""
    wide = int(figure.get_figwidth() * 72 / (0.52 * FONT))
    figure.suptitle("\n".join(wrap(text, wide)), x=0.01, ha="left", fontsize=FONT, color="#555555")


def height(num_labels: int, least: float) -> float:
    """Return the inches that axes with so many labels beside them need, at least `least`."""
    return max(least, (num_labels + 1) * PITCH / 72)


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Return places close to the wanted ones, in their order, at least `gap` apart and inside 0 to `top` if they fit.

    Labels that touch form a block, whose middle lies at the mean of what its labels want; blocks that touch are joined.

    Args:
        wanted: places, in any order.
        gap: the least distance of two places.
        top: the upper end of the room.
    """
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    blocks: list[list[int]] = []
    for number in order:
        blocks.append([number])
        while len(blocks) > 1 and _start(blocks[-1], wanted, gap, top) < _end(blocks[-2], wanted, gap, top) + gap:
            last = blocks.pop()
            blocks[-1] += last
    places = [0.0] * len(wanted)
    for block in blocks:
        start = _start(block, wanted, gap, top)
        for step, number in enumerate(block):
            places[number] = start + step * gap
    return places


def _start(block: Sequence[int], wanted: Sequence[float], gap: float, top: float) -> float:
    length = (len(block) - 1) * gap
    middle = sum(wanted[number] for number in block) / len(block)
    return max(0.0, min(middle - length / 2, top - length))


def _end(block: Sequence[int], wanted: Sequence[float], gap: float, top: float) -> float:
    return _start(block, wanted, gap, top) + (len(block) - 1) * gap


def label_beside(figure: Figure, axes: Axes, ends: Sequence[End], looks: Mapping[str, Look], *, joined: bool) -> None:
    """Write every series' name right of the axes, with its marker, as level with its point as there is room.

    The figure's layout must be constrained: it makes room for the labels.

    Args:
        figure: the axes' own.
        axes: with their final limits.
        ends: a point per series, in any order.
        looks: the series' styles.
        joined: draw a thin line from each point to its label.
    """
    artists = [_place(axes, end, 0.0, looks[end.label], joined) for end in ends]
    figure.draw_without_rendering()  # only a layout knows how high the axes are
    box = axes.get_window_extent()
    gap = PITCH / 72 * figure.dpi / box.height
    wanted = [(axes.transData.transform((end.at, end.value))[1] - box.y0) / box.height for end in ends]
    for group in artists:
        for artist in group:
            artist.remove()
    for end, place in zip(ends, spread(wanted, gap, 1.0), strict=True):
        _place(axes, end, place, looks[end.label], joined)


def _place(axes: Axes, end: End, place: float, look: Look, joined: bool) -> list[Artist]:
    """Draw a label at a height given as a share of the axes' own."""
    mark_at, text_at = (_right_of(axes, points) for points in (_MARKER_AT, _TEXT_AT))
    style = {**look.line, "linestyle": "", "markersize": 4.5}
    artists: list[Artist] = [axes.add_artist(Line2D([1], [place], transform=mark_at, clip_on=False, **style))]
    artists.append(axes.text(1, place, end.label, transform=text_at, va="center_baseline", fontsize=FONT))
    if joined:
        line = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.5, "alpha": 0.55, "shrinkA": 4, "shrinkB": 3}
        artists.append(
            axes.annotate(
                "", (end.at, end.value), (1, place), textcoords=mark_at, arrowprops=line, annotation_clip=False
            )
        )
    return artists


def _right_of(axes: Axes, points: float) -> Transform:
    """Return coordinates whose 1 is so many points right of the axes, and whose heights are shares of the axes'."""
    return axes.transAxes + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
