"""The picture of `dpbench visualize`: what methods keep of one image, side by side; Figure 5 of the DiffPrune paper.

N visual tokens of the image, K kept ones, H and W pixels of the picture. No torch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpbench.errors import ConfigError, did_you_mean
from dpbench.report.figures.files import FORMATS, style
from dpbench.storage import files

ROWS = ("kept", "lowest", "scores", "similarity")
"""The rows of the picture."""
_LABELS = {"kept": "kept", "lowest": "lowest scores", "scores": "scores", "similarity": "cosine similarity"}
_DARK = 0.18
_WIDTH = 1.9
"""Inches of one method's column."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """An image as the tower sees it.

    Attributes:
        picture: (H, W, 3) uint8.
        corner_N2: left and top of each token's patch; -1 where the LLM never reads it.
        cell: side of a patch in pixels.
    """

    picture: NDArray[np.uint8]
    corner_N2: NDArray[np.int64]
    cell: int

    def paint(self, value_N: NDArray[Any], outside: float) -> NDArray[np.float64]:
        """Return (H, W) with each patch holding its token's value."""
        field = np.full(self.picture.shape[:2], outside)
        for (x, y), value in zip(self.corner_N2, value_N, strict=True):
            if x >= 0:
                field[y : y + self.cell, x : x + self.cell] = value
        return field


@dataclass(frozen=True)
class Kept:
    """One decision on one image.

    Attributes:
        title: method, layer of the cut and counts.
        sheet: the image.
        tokens_K: the kept tokens in ascending order, without those that are merged into others.
        scores_N: the ranking behind the choice, NaN where there is none.
        unit_ND: every token after the projector, at length 1.
    """

    title: str
    sheet: Sheet
    tokens_K: NDArray[np.int64]
    scores_N: NDArray[np.float64]
    unit_ND: NDArray[np.float32]

    @property
    def has_scores(self) -> bool:
        """Return True if the method ranks tokens."""
        return bool(np.isfinite(self.scores_N).any())

    @cached_property
    def dropped_K(self) -> NDArray[np.int64]:
        """Return at most K dropped tokens: those with the lowest scores, lowest last; else evenly spaced ones."""
        rest = np.setdiff1d(np.arange(len(self.scores_N)), self.tokens_K)
        count = min(len(self.tokens_K), len(rest))
        if self.has_scores:
            rest = rest[np.isfinite(self.scores_N[rest])]
            return rest[np.argsort(self.scores_N[rest], kind="stable")][:count][::-1]
        return rest[np.linspace(0, len(rest) - 1, count).astype(int)] if count else rest[:0]

    @cached_property
    def similarity(self) -> NDArray[np.float32]:
        """Return the cosines between all kept and dropped tokens: kept ones first, in both by falling score."""
        top = self.tokens_K
        if self.has_scores and np.isfinite(self.scores_N[top]).all():
            top = top[np.argsort(-self.scores_N[top], kind="stable")]
        unit = self.unit_ND[np.concatenate([top, self.dropped_K])]
        return np.asarray(unit @ unit.T, dtype=np.float32)


def parse_rows(requested: Sequence[str]) -> tuple[str, ...]:
    """Return the rows that `--show` names, in the picture's order; all by default.

    Raises:
        ConfigError: a row is unknown.
    """
    names = [name.strip() for entry in requested or ROWS for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in ROWS:
            raise ConfigError(f"--show: there is no row {name!r}; {did_you_mean(name, ROWS)}")
    return tuple(name for name in ROWS if name in names)


def write(decisions: Sequence[Kept], rows: Sequence[str], out: Path) -> None:
    """Draw decisions side by side and write them in the format of out's suffix.

    Raises:
        ConfigError: the suffix is not that of a picture, or the file cannot be written.
    """
    check_out(out)
    with style():
        figure = draw(decisions, rows)
        stream = io.BytesIO()
        figure.savefig(stream, format=out.suffix[1:].lower(), dpi=110)
    files.write_output("--out", out, stream.getvalue())


def check_out(out: Path) -> None:
    """Refuse a path that a picture cannot be written to, before a model is loaded.

    Raises:
        ConfigError: its suffix is not that of a picture, it is a folder, or its parent folder cannot be written to.
    """
    if out.suffix[1:].lower() not in FORMATS or out.is_dir():
        raise ConfigError(f"--out: {out} is not the name of a picture; give one that ends in .png, .pdf or .svg")
    files.check_writable(out.parent)


def draw(decisions: Sequence[Kept], rows: Sequence[str]) -> Figure:
    """Return the picture: a column per decision, a row per kind; rows that no method can fill are dropped."""
    rows = [row for row in rows if row in ("kept", "similarity") or any(decision.has_scores for decision in decisions)]
    height, width, _ = decisions[0].sheet.picture.shape
    aspect = {row: 1.0 if row == "similarity" else height / width for row in rows}
    width_in = _WIDTH * max(1.0, width / height)
    figure = Figure(figsize=(0.5 + width_in * len(decisions), 0.5 + sum(width_in * ratio for ratio in aspect.values())))
    grid = figure.subplots(len(rows), len(decisions), squeeze=False, height_ratios=list(aspect.values()))
    for row, panels in zip(rows, grid, strict=True):
        _draw_row(figure, row, list(panels), decisions)
        panels[0].set_ylabel(_LABELS[row])
    for decision, axes in zip(decisions, grid[0], strict=True):
        axes.set_title(decision.title)
    return figure


def _draw_row(figure: Figure, row: str, panels: list[Axes], decisions: Sequence[Kept]) -> None:
    lowest = min((float(decision.similarity.min(initial=1.0)) for decision in decisions), default=0.0)
    for axes, decision in zip(panels, decisions, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if row == "similarity":
            _draw_similarity(axes, decision, lowest)
        elif row == "kept" or decision.has_scores:
            axes.imshow(_render_tokens(row, decision), interpolation="nearest")
        else:
            axes.text(0.5, 0.5, "no scores", ha="center", va="center", transform=axes.transAxes, color="#777777")
    if row == "scores":
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), ax=panels, fraction=0.02, pad=0.01)
        bar.set_ticks([0, 1], labels=["lowest", "highest"])
    if row == "similarity":
        figure.colorbar(ScalarMappable(Normalize(lowest, 1), "magma"), ax=panels, fraction=0.02, pad=0.01)


def _render_tokens(row: str, decision: Kept) -> NDArray[np.uint8]:
    """Return the image with the tokens that are not shown darkened, or coloured by score."""
    picture, brightness_N = decision.sheet.picture.astype(float), np.zeros(len(decision.scores_N))
    if row == "scores":
        heat = colormaps["viridis"](decision.sheet.paint(_ranks(decision.scores_N), np.nan))[..., :3] * 255
        is_scored = np.isfinite(decision.sheet.paint(decision.scores_N, np.nan))[..., None]
        grey = picture.mean(-1, keepdims=True)
        return np.where(is_scored, 0.75 * heat + 0.25 * grey, _shade(decision.sheet, picture)).astype(np.uint8)
    brightness_N[decision.tokens_K if row == "kept" else decision.dropped_K] = 1
    return (picture * decision.sheet.paint(_DARK + (1 - _DARK) * brightness_N, 1.0)[..., None]).astype(np.uint8)


def _shade(sheet: Sheet, picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the picture with every patch darkened, and white elsewhere."""
    return picture * sheet.paint(np.full(len(sheet.corner_N2), _DARK), 1.0)[..., None]


def _ranks(scores_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each token the share of scored tokens that it beats, 0-1: one scale for the scores of all methods."""
    ranks, scored = np.full(len(scores_N), np.nan), np.flatnonzero(np.isfinite(scores_N))
    ranks[scored[np.argsort(scores_N[scored], kind="stable")]] = np.linspace(0, 1, len(scored))
    return ranks


def _draw_similarity(axes: Axes, decision: Kept, lowest: float) -> None:
    """Draw the matrix, the border between kept and dropped tokens, and the mean cosine inside both blocks."""
    count, matrix = len(decision.tokens_K), decision.similarity
    if not len(matrix):
        axes.text(
            0.5, 0.5, "nothing kept to compare", ha="center", va="center", transform=axes.transAxes, color="#777777"
        )
        return
    axes.imshow(matrix, cmap="magma", vmin=lowest, vmax=1, interpolation="nearest")
    axes.axhline(count - 0.5, color="white", linewidth=1)
    axes.axvline(count - 0.5, color="white", linewidth=1)
    blocks = (
        ("kept", matrix[:count, :count]),
        ("lowest" if decision.has_scores else "dropped", matrix[count:, count:]),
    )
    parts = [f"{name} {_mean_off_diagonal(block):.2f}" for name, block in blocks if len(block) > 1]
    axes.set_xlabel("  |  ".join(parts), fontsize=7.5)


def _mean_off_diagonal(block: NDArray[np.float32]) -> float:
    size = len(block)
    return float((block.sum() - np.trace(block)) / (size * (size - 1)))
