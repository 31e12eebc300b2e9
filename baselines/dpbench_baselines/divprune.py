"""DivPrune (Alvar et al., CVPR 2025, arXiv:2503.02175), section 3: the subset whose nearest two lie furthest apart.

Max-min diversity, solved greedily: each pick is the token furthest in cosine from all picked so far. Training-free,
before the LLM, after the projector, blind to the question.

Read against: a description of vbdi/divprune (LLaVA/llava/model/llava_arch.py). That repository is CC BY-NC 4.0:
              nothing in this file comes from it but the algorithm, which the paper states.
Same as upstream:  the first pick is the token whose nearest neighbour is furthest; picks sorted; the share kept rounds
                   half to even; newlines apart, one budget over all of an image's views, its padding left out.
Differs:           a running minimum instead of all distances to all picks (the same picks, N a step instead of K N);
                   a token is never picked twice (upstream does where tokens are equal, and keeps fewer); a token of
                   length 0 is at distance 1 from all (upstream: NaN); float32 (upstream: the model's type; on the
                   vectors 1 to 4 % of the picks differ in float16, 5 to 15 % in bfloat16); AnyRes newlines are text
                   (upstream: candidates); every image of a prompt is pruned by itself (upstream: the first, for all).
Budget:            upstream gives a share of the tokens: `keep_ratio` is that, whatever the budget (0.098 in its
                   scripts, 56 of 576).

Shape letters: N visual tokens, K tokens kept, D the LLM's width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.errors import ConfigError
from dpbench.method import Method, Reduction, Spends, VisualTokens

PANEL = 192
"""Rows of the products computed at once."""
BEHIND = -4.0
"""Less than any cosine distance: what is picked only when nothing else is left."""


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Keep the tokens that are furthest from each other (DivPrune, max-min diversity).

    keep_ratio: the share of the tokens kept, whatever the budget. Default None: the budget; 0.098 upstream.
    """

    anyres = "global"

    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"--param: divprune.keep_ratio is the share kept, above 0 to 1, got {self.keep_ratio}")

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a ratio given has a count of its own."""
        return "per-image" if self.keep_ratio is None else "own"

    @torch.no_grad()
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Pick greedily, and put the picks in the order in which the unpruned LLM reads them."""
        if self.keep_ratio is not None:
            keep = max(1, round(self.keep_ratio * len(visual)))
        picks_K = most_diverse(cosine_distances(visual.embeds_ND), visual.read_N, keep)
        order_K = torch.argsort(visual.slot_N[picks_K] * len(visual) + picks_K)
        return Reduction(picks_K[order_K])


def cosine_distances(embeds_ND: Tensor) -> Tensor:
    """Return one minus the cosine of every two tokens, (N, N) float32; a token of length 0 has cosine 0."""
    units_ND = torch.nn.functional.normalize(embeds_ND.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)
    return products(units_ND[None])[0].neg_().add_(1)


def products(rows_VND: Tensor) -> Tensor:
    """Return the inner products of every two rows of a view, (V, N, N).

    Computed in panels of rows from the diagonal on and mirrored: half of the multiplications.
    """
    num_views, num = rows_VND.shape[:2]
    products_VNN = rows_VND.new_empty(num_views, num, num)
    for start in range(0, num, PANEL):
        stop = start + PANEL
        panel_VPM = rows_VND[:, start:stop] @ rows_VND[:, start:].mT
        products_VNN[:, start:stop, start:] = panel_VPM
        products_VNN[:, start:, start:stop] = panel_VPM.mT
    return products_VNN


def most_diverse(distances_NN: Tensor, real_N: Tensor, keep: int) -> Tensor:
    """Return the greedy max-min picks in the order in which they are made, int64 (K,).

    Args:
        distances_NN: symmetric; the diagonal is not read.
        real_N: bool; other tokens are picked, first ones first, only when there are no more of these.
        keep: K, at most N.
    """
    ahead_N = torch.where(real_N, torch.inf, BEHIND)
    others_NN = distances_NN.masked_fill(~real_N, torch.inf).fill_diagonal_(torch.inf)
    pick_1 = torch.minimum(others_NN.amin(1), ahead_N).argmax(0, keepdim=True)
    others_NN.fill_diagonal_(-torch.inf)  # a pick's own distance puts it behind all others
    picks, nearest_N = [pick_1], ahead_N
    for _ in range(keep - 1):
        # a tensor as index, never its value: reading it would make the device wait
        torch.minimum(nearest_N, others_NN.index_select(0, pick_1)[0], out=nearest_N)
        pick_1 = nearest_N.argmax(0, keepdim=True)
        picks.append(pick_1)
    return torch.cat(picks)
