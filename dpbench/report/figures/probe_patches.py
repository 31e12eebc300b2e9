"""The figure of what removed and noised patches look like (Figure 4a of the DiffPrune paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench.report.figures import labels
from dpbench.report.figures.scores import COLUMN, PAGE

_SMALL = 6.5
_FORMS = {"removal": "removed", "mask": "noise", "soft": "soft weights"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One image, H x W pixels with colours from 0 to 1, and what is left of it.

    Attributes:
        image: (H, W, 3).
        decoded: of all its tokens; None where tokens are pixels.
        scores: (H, W), NaN where there is no token.
        forms: by form and budget.
    """

    image: Any
    decoded: Any | None
    scores: Any
    forms: Mapping[tuple[str, int | float], Any]

    @property
    def whole(self) -> dict[str, Any]:
        """Return what is shown of the unpruned image, by title."""
        decoded = {} if self.decoded is None else {"all, decoded": self.decoded}
        return {"image": self.image, **decoded, "scores": self.scores}


def draw(pictures: Sequence[Picture], about: str) -> Figure:
    """Draw the images side by side, each with a row per form and a column per budget.

    Args:
        pictures: with the same forms and budgets.
        about: what is shown.
    """
    forms = list(dict.fromkeys(form for form, _ in pictures[0].forms))
    keeps = list(dict.fromkeys(keep for _, keep in pictures[0].forms))
    width, num_rows = (COLUMN if len(pictures) == 1 else PAGE), max(len(forms), len(pictures[0].whole))
    height, across = pictures[0].image.shape[0], pictures[0].image.shape[1] * (1 + len(keeps)) * len(pictures)
    figure = Figure(figsize=(width, 0.32 + num_rows * (0.02 + (width - 0.75) * height / across)))
    blocks = figure.subfigures(1, len(pictures), squeeze=False, wspace=0.02)[0]
    for block, picture in zip(blocks, pictures, strict=True):
        panels = block.subplots(num_rows, 1 + len(keeps), squeeze=False)
        for axes in panels.ravel():
            axes.set_visible(False)
        for axes, (name, pixels) in zip(panels[:, 0], picture.whole.items(), strict=False):
            _show(axes, pixels, name)
        for row, form in zip(panels[:, 1:], forms, strict=False):
            for axes, keep in zip(row, keeps, strict=True):
                _show(axes, picture.forms[form, keep], _FORMS[form] if keep == keeps[0] else "")
        for axes, keep in zip(panels[0, 1:], keeps, strict=True):
            axes.set_title(f"keep {keep:g}", fontsize=_SMALL, pad=2)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    labels.write_heading(figure, about)
    return figure


def _show(axes: Axes, pixels: Any, name: str) -> None:
    axes.imshow(pixels, cmap="GnBu", interpolation="none")
    axes.set_ylabel(name, fontsize=_SMALL, labelpad=2)
    axes.set(xticks=[], yticks=[], visible=True)
    axes.spines[:].set(visible=True, linewidth=0.4, color="#999999")
