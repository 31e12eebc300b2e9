"""Where the texts of a drawn figure are: none may leave the canvas, cover another, or cover the data."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

LEAST_FONT = 6.0
"""Points that can still be read in print."""


def lay_out(figure: Figure) -> None:
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()


def texts(figure: Figure) -> list[Text]:
    """Return every text that is drawn."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in visible(figure):
        found += [*axes.texts, *(text for text in axes.get_children() if isinstance(text, Text)), *tick_labels(axes)]
        found += [axes.xaxis.label, axes.yaxis.label]
    return [text for text in dict.fromkeys(found) if text.get_text().strip() and text.get_visible()]


def visible(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def tick_labels(axes: Axes) -> list[Text]:
    labelled = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        labelled += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and shows(tick)]
    return labelled


def named_lines(axes: Axes) -> dict[str, Line2D]:
    """Return the lines of series: not those of the grid or of labels."""
    names = {str(line.get_label()): line for line in axes.lines}
    return {name: line for name, line in names.items() if name and not name.startswith("_")}


def shows(tick: Artist) -> bool:
    return bool(tick.label1.get_visible())  # type: ignore[attr-defined]


def box(text: Text) -> Bbox:
    """Return a text's own box, without the line of an annotation."""
    return Text.get_window_extent(text)


def covers(one: Bbox, other: Bbox) -> bool:
    return bool(overlaps([one, other]))


def overlaps(boxes: list[Bbox]) -> list[tuple[int, int]]:
    """Return which of T boxes share more than half a pixel in both directions."""
    low_T2, high_T2 = np.array([each.min for each in boxes]), np.array([each.max for each in boxes])
    common_TT2 = np.minimum(high_T2[:, None], high_T2) - np.maximum(low_T2[:, None], low_T2)
    return [(int(a), int(b)) for a, b in np.argwhere((common_TT2 > 0.5).all(-1)) if a < b]


def faults(figure: Figure) -> list[str]:
    """Return what is wrong with a figure's texts."""
    boxes = [(text.get_text(), box(text)) for text in texts(figure)]
    canvas = Bbox.from_bounds(-0.5, -0.5, figure.bbox.width + 1, figure.bbox.height + 1)
    found = [f"{name!r} leaves the canvas" for name, each in boxes if not inside(each, canvas)]
    found += [f"{boxes[a][0]!r} covers {boxes[b][0]!r}" for a, b in overlaps([each for _, each in boxes])]
    for legend in figure.legends:
        frame = legend.get_window_extent()
        found += [] if inside(frame, canvas) else ["the legend leaves the canvas"]
        found += ["the legend covers the data" for axes in visible(figure) if covers(frame, axes.bbox)]
    for axes in visible(figure):
        beside = [text for text in axes.texts if text.get_text() and text.get_transform() != axes.transData]
        found += [f"{text.get_text()!r} covers the data" for text in beside if covers(box(text), axes.bbox)]
    return found


def inside(each: Bbox, canvas: Bbox) -> bool:
    return canvas.x0 <= each.x0 and canvas.y0 <= each.y0 and each.x1 <= canvas.x1 and each.y1 <= canvas.y1
