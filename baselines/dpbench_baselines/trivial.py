"""The baselines that read no content, which every method must beat before its ranking means anything.

Shape letters: N visual tokens, R rows and C columns of the image's tokens, D the LLM's width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.method import Budget, Method, Reduction, VisualTokens

MOST_DISTORTED = 1.25
"""How far the sides of a smaller grid may leave the image's aspect to come nearer to the budget."""


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep a uniformly random subset of the visual tokens."""

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Draw `keep` of N tokens without replacement, in reading order."""
        order = torch.randperm(len(visual), generator=visual.generator)
        return Reduction(order[:keep].sort().values.to(visual.embeds_ND.device))


@dataclass(frozen=True, kw_only=True)
class Grid(Method):
    """Keep an evenly spaced subset of the visual tokens in raster order."""

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Take the middle token of each of `keep` equal runs of the raster."""
        return Reduction(middles(len(visual), keep, visual.embeds_ND.device))


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Average neighbouring visual tokens down to a smaller grid (adaptive average pooling, after the projector)."""

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Pool each view's grid to the largest within its share; a row stands where its cell's middle token stood."""
        num_views = int(visual.view_N[-1]) + 1
        rows, columns = int(visual.row_N.max()) + 1, int(visual.col_N.max()) + 1
        height, width = nearest_grid((rows, columns), max(1, keep // num_views))
        map_VDRC = visual.embeds_ND.view(num_views, rows, columns, -1).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.adaptive_avg_pool2d(map_VDRC, (height, width)).permute(0, 2, 3, 1)
        down, across = middles(rows, height, visual.row_N.device), middles(columns, width, visual.row_N.device)
        middle = (down[:, None] * columns + across).flatten()
        views = torch.arange(num_views, device=middle.device)[:, None] * (rows * columns)
        return Reduction((views + middle).flatten(), embeds_KD=pooled.flatten(0, 2))


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """Shrink the image so that the tower itself makes no more tokens than the budget; it is never blown up again."""

    def resize(self, grid_hw: tuple[int, int], budget: Budget) -> tuple[int, int]:
        """Return the largest grid within the budget that has about the image's aspect."""
        return nearest_grid(grid_hw, budget.count)


def nearest_grid(grid_hw: tuple[int, int], count: int) -> tuple[int, int]:
    """Return the rows and columns, at most `count` tokens in all, nearest to `count` at about the grid's aspect.

    Of the grids whose aspect is off by a factor of at most 1.25 the one with the most tokens; where there is none, the
    one whose aspect is off the least.
    """
    rows, columns = grid_hw

    def merit(grid: tuple[int, int]) -> tuple[float, int, float]:
        aspect = grid[0] * columns / (grid[1] * rows)
        distortion = max(aspect, 1 / aspect)
        return -max(distortion, MOST_DISTORTED), grid[0] * grid[1], -distortion

    fitting = [(h, w) for h in range(1, rows + 1) for w in range(1, min(columns, count // h) + 1)]
    return max(fitting, key=merit)


def middles(size: int, cells: int, device: torch.device) -> Tensor:
    """Return the middle token of each of `cells` equal parts of a side, int64."""
    return (torch.arange(cells, device=device) * 2 + 1) * size // (2 * cells)
