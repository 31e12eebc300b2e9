"""HiRED (Arif et al., AAAI 2025, arXiv:2408.10945), section 4: the first tower layer splits the budget over the tiles.

CLS attention in the tower's first layer says how much of the budget each tile of a high-resolution image gets, CLS
attention at the select layer which of its tokens stay. Training-free, before the LLM, blind to the question.

Read against: hasanar1f/HiRED, its transformers fork (modeling_llava.py, modeling_llava_next.py); commit not recorded
Same as upstream:  tokens ranked by the head sum of the CLS row at the select layer; LLaVA-1.5 keeps the top K. With
                   tiles: the base view gets `alpha` of the budget; of the base view's top (1 - alpha) N tokens in layer
                   0 a tile's share is how many fall in its part of the raster, the N / T-th part of the flat list: a
                   band of rows, not the quadrant it shows; shares rounded down in float32, the remainder is unused.
                   Base view first, then the tiles along the canvas. Budgets are set before unpadding: what is kept in
                   padding is lost, so that fewer than K are read.
Differs:           ties go to the earlier token (upstream leaves them to topk); float32; the projector has run on all
                   tokens already (the same rows); where N does not divide, bands differ by a token (upstream: 576 by 1
                   to 4); the base view keeps a token at least, unless alpha is 0. Tiles lie where they belong:
                   upstream swaps rows and columns of the grid, so that other grids than square ones are laid out
                   transposed and cropped to a wrong shape, which loses most of their tokens.
Budget:            upstream gives a share of all tokens, int(V N rate): `token_budget_rate` is that, whatever the budget
                   (0.2 in its scripts).

Shape letters: V views, N tokens of a view, T = V - 1 tiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, Spends, VisualTokens, top_indices

FIRST = 0
"""The tower layer that splits the budget."""


@dataclass(frozen=True, kw_only=True)
class HiRED(Method):
    """Split the budget over tiles by first-layer CLS attention, fill it by select-layer CLS attention (HiRED).

    token_budget_rate: the share of all tokens kept, whatever the budget. Default None: the budget; 0.2 upstream.
    alpha: the base view's share of the budget where there are tiles. Default 0.5.
    """

    anyres = "own"

    token_budget_rate: float | None = None
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.token_budget_rate is not None and not 0 < self.token_budget_rate <= 1:
            raise ConfigError(
                f"--param: hired.token_budget_rate is the share kept, above 0 to 1, got {self.token_budget_rate}"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--param: hired.alpha is the base view's share, 0 to 1, got {self.alpha}")

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a rate given has a count of its own."""
        return "per-image" if self.token_budget_rate is None else "own"

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the CLS rows of the select layer and, where there is one, of the first."""
        if "cls_attention" not in provides:
            raise UnsupportedError("hired needs a vision tower with a CLS token, and this backbone has none")
        return frozenset({"cls_attention", "cls_attention[0]"}) & provides

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Split the budget over the views, and fill each view's part by the select layer's CLS row."""
        scores_N = head_sum(visual, max(visual.cls_attention))
        if self.token_budget_rate is not None:
            keep = max(1, int(len(visual) * self.token_budget_rate))
        num_views = int(visual.view_N[-1]) + 1
        if num_views == 1:
            return Reduction(top_indices(scores_N, keep), scores_N=scores_N)
        if FIRST not in visual.cls_attention:
            raise UnsupportedError("hired needs the CLS row of the tower's first layer, and this backbone gives none")
        scores_VN = scores_N.unflatten(0, (num_views, -1))
        first_N = head_sum(visual, FIRST)[: scores_VN.shape[1]]
        budgets_V = view_budgets(first_N, num_views - 1, keep, self.alpha)
        indices_K = highest(scores_VN, budgets_V).flatten().nonzero()[:, 0]
        order_K = torch.argsort(visual.slot_N[indices_K], stable=True)
        return Reduction(indices_K[order_K], scores_N=scores_N)


def head_sum(visual: VisualTokens, layer: int) -> Tensor:
    """Return the CLS row of a tower layer, summed over heads, float32, for all views one after another."""
    return visual.cls_attention[layer].float().sum(0)


def view_budgets(first_N: Tensor, num_tiles: int, keep: int, alpha: float) -> Tensor:
    """Return how many tokens each view keeps, int64 (V,).

    Args:
        first_N: the base view's CLS row in the first layer.
        num_tiles: T.
        keep: budget over all views.
        alpha: the base view's share.

    Raises:
        ConfigError: there is something left for the tiles, but no attention to split it by.
    """
    num = len(first_N)
    base = min(max(int(keep * alpha), int(alpha > 0)), num)
    rest, marked = min(keep - base, num_tiles * num), int(num * (1 - alpha))
    if rest > 0 and marked == 0:
        raise ConfigError(
            f"--param: hired.alpha={alpha} leaves {rest} tokens to the tiles but none of the base view's {num} to "
            "split them by; lower alpha or the budget"
        )
    tiles_T = tile_budgets(first_N, num_tiles, rest, marked)
    return torch.cat([tiles_T.new_full((1,), base), tiles_T])


def tile_budgets(first_N: Tensor, num_tiles: int, rest: int, marked: int) -> Tensor:
    """Return how many tokens each tile keeps, int64 (T,): its band's part of the marked tokens, rounded down.

    Args:
        first_N: the base view's CLS row in the first layer.
        num_tiles: T.
        rest: budget over the tiles.
        marked: how many of the base view's tokens count, the highest; 0 only where `rest` is.
    """
    num = len(first_N)
    band_M = torch.argsort(first_N, descending=True, stable=True)[:marked] * num_tiles // num
    counts_T = torch.zeros(num_tiles, dtype=torch.int64, device=first_N.device)
    counts_T.scatter_add_(0, band_M, torch.ones_like(band_M))
    share_T = counts_T.float() / max(marked, 1)
    return (share_T * rest).long().clamp(max=num)


def highest(scores_VN: Tensor, num_V: Tensor) -> Tensor:
    """Return which scores are among the highest of their view, as many as `num_V` says, bool; ties to the earlier."""
    order_VN = torch.argsort(scores_VN, dim=-1, descending=True, stable=True)
    is_taken_VN = torch.arange(scores_VN.shape[-1], device=scores_VN.device) < num_V[:, None]
    return torch.zeros_like(is_taken_VN).scatter_(-1, order_VN, is_taken_VN)
