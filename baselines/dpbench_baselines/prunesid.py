"""PruneSID (Fang et al., ICLR 2026, arXiv:2603.09480): groups by principal component, the best tokens of each group.

Tokens that load most on the same principal component form a group (PSCA); inside a group, tokens too similar to a
better one go to the back; groups share the budget by what is left in front. Training-free, before the LLM. With a CLS
token: before the projector, ranked by CLS attention, and the CLS row is one of the K. Without: after the projector,
ranked by the loadings.

Read against: ZhengyaoFang/PruneSID @ 390d760, prunesid/prunesid_llava and prunesid/prunesid_qwen (written for Qwen2-VL)
Same as upstream:  randomised PCA over the sigmoid of the features, one sketch for all views, drawn from the image's
                   generator; CLS first, then group by group; limits of groups grow until they hold K although CLS has
                   one of the K. Without CLS: raster order above 150 rows, and a mean similarity of about half (the sum
                   over pairs and diagonal, over N * N). No budget follows the image's content, whatever the abstract.
Differs:           groups that kept as many fill in group order (upstream: unstable sort); similarities in float32
                   (upstream: the model's type); attention of 0 is no bar (upstream never keeps such a token before
                   others); K < 4 and K/4 beyond the features' width or N mean fewer groups (upstream fails); K is the
                   caller's (upstream without CLS: at least 16).
LLaVA-NeXT:        views share the budget equally, the remainder is unused; fewer rows than views: the first views' CLS
                   rows. Base view, then the tiles' tokens along the canvas, then the tiles' CLS rows. Upstream hands
                   the places of a tile's tokens, in raster order, to the tokens in group order, so that few stand where
                   they lie, and lets padding take part; here each has its own place and what unpadding drops takes no
                   part, unless `parity`: then what is kept of it is read and counted, as upstream.

Shape letters: V views, N visual tokens of a view, C features, S and L the smaller and larger of N and C, G groups,
K rows kept, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens
from dpbench_baselines.tile_canvas import canvas_order, padded_places

PANEL = 64
"""Rows of the similarity matrix computed at once."""
ROUNDS = 8
"""Rounds of suppression between two looks at whether anything still changes."""


@dataclass(frozen=True, kw_only=True)
class PruneSID(Method):
    """Keep the best tokens of each semantic group, those too similar to a better one last (PruneSID).

    tokens_per_group: there are K / tokens_per_group groups. Default 4.
    min_groups: groups at least, without CLS. Default 4.
    num_iterations: power iterations of the randomised PCA. Default 2.
    exact: full SVD in place of the random sketch. Default false; upstream has only the sketch.
    threshold_tokens: too similar is above K / threshold_tokens times the mean similarity (often out of reach); without
        CLS, K counts as if of 576 tokens and the factor is at least 1. Default 32.
    floor: tokens that every group gets, if it has so many. Default 1.
    cap: a group gets at most cap * ceil(K / cap_tokens) tokens, unless the others have no more to give. Default 5.
    cap_tokens: see cap. Default 64.
    order: rows group by group, or in raster order. Default "group"; tiles always lie along the canvas.
    raster_above: without CLS, more rows than this are in raster order anyway. Default 150.
    parity: LLaVA-NeXT's misplaced tokens, and padding ranked and read, as in the published numbers. Default false.
    """

    anyres = "own"
    tokens_per_group: int = 4
    min_groups: int = 4
    num_iterations: int = 2
    exact: bool = False
    threshold_tokens: float = 32
    floor: int = 1
    cap: int = 5
    cap_tokens: int = 64
    order: Literal["group", "raster"] = "group"
    raster_above: int = 150
    parity: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens_per_group", "min_groups", "cap", "cap_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PruneSID needs {name} >= 1, got {getattr(self, name)}")
        if self.threshold_tokens <= 0:
            raise ConfigError(f"PruneSID needs threshold_tokens > 0, got {self.threshold_tokens}")
        if self.order not in ("group", "raster"):
            raise ConfigError(f"PruneSID knows order=group and order=raster, got {self.order!r}")

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the CLS token and its attention at the select layer, or nothing if the tower has none."""
        if "cls_attention" not in provides:
            return frozenset()
        if "cls_hidden_VC" not in provides:
            raise UnsupportedError("prunesid gives the LLM the CLS token, and this backbone has only its attention")
        if self.positions == "original":
            raise UnsupportedError("prunesid's CLS rows have no original position here; use positions=compact")
        return frozenset({"cls_attention", "cls_hidden_VC"})

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Choose view by view in the tower's features where there is a CLS token, else over the whole image."""
        if visual.cls_attention:
            return self.reduce_views(visual, keep)
        views = Views(visual.embeds_ND[None].float(), visual.read_N[None], has_cls=False)
        loadings_VNG = self.loadings(views, keep, visual.generator)
        scores_VN = loadings_VNG.amax(-1)
        ids_K = self.choose(views, loadings_VNG, scores_VN, keep)[0]
        if self.order == "raster" or keep > self.raster_above:
            ids_K = ids_K.sort().values
        return Reduction(ids_K, scores_N=scores_VN[0])

    def reduce_views(self, visual: VisualTokens, keep: int) -> Reduction:
        """Choose in each view alike; the views are of one size and have a CLS row each.

        Args:
            visual: all tokens of the image, or those of one view.
            keep: budget in rows over the views given, CLS rows included.
        """
        assert visual.cls_hidden_VC is not None, "asked for in needs"
        size, rest = divmod(len(visual), len(visual.cls_hidden_VC))
        if rest:
            raise ValueError(f"{len(visual)} visual tokens do not divide over {len(visual.cls_hidden_VC)} CLS rows")
        used = min(len(visual.cls_hidden_VC), keep)
        hidden_NC, cls_VC = visual.hidden_NC, visual.cls_hidden_VC[:used]
        real_N = visual.read_N | self.parity
        scores_N = visual.cls_attention[max(visual.cls_attention)].float().sum(0)
        tokens_VNC, real_VN, scores_VN = (x.unflatten(0, (-1, size))[:used] for x in (hidden_NC, real_N, scores_N))
        views = Views(tokens_VNC.float(), real_VN, has_cls=True)
        loadings_VNG = self.loadings(views, keep // used, visual.generator)
        ids_VK = self.choose(views, loadings_VNG, scores_VN, keep // used)
        ids_VK = ids_VK + size * torch.arange(used, device=ids_VK.device)[:, None]
        base_K = ids_VK[0].sort().values if self.order == "raster" else ids_VK[0]
        place_N = padded_places(visual, len(visual.cls_hidden_VC) - 1) if self.parity else visual.slot_N
        tiles_M = canvas_order(ids_VK[1:], place_N, misplace=self.parity)
        no_token_V = torch.full((used,), -1, device=ids_VK.device)
        # with `parity` a row of padding counts as one that is no token, so that the LLM reads it
        tokens_N = torch.arange(len(visual), device=ids_VK.device).masked_fill(~visual.read_N & self.parity, -1)
        indices_K = torch.cat([no_token_V[:1], tokens_N[base_K], tokens_N[tiles_M], no_token_V[1:]])
        hidden_KC = torch.cat([cls_VC[:1], hidden_NC[base_K], hidden_NC[tiles_M], cls_VC[1:]])
        return Reduction(indices_K, hidden_KC=hidden_KC, scores_N=scores_N)

    def loadings(self, views: Views, keep: int, generator: torch.Generator) -> Tensor:
        """Return each token's loading on each group's component, (V, N, G), for `keep` rows of a view; G <= S."""
        num_groups = max(keep // self.tokens_per_group, 1 if views.has_cls else self.min_groups)
        if self.exact:
            return exact_loadings(centre(views), num_groups)
        sketch_SG = torch.randn(min(views.tokens_VNC.shape[1:]), num_groups, generator=generator)
        return sketched_loadings(centre(views), sketch_SG.to(views.tokens_VNC.device), self.num_iterations)

    def choose(self, views: Views, loadings_VNG: Tensor, scores_VN: Tensor, keep: int) -> Tensor:
        """Return the tokens chosen in each view, group by group, int64 (V, K), or one less beside a CLS row.

        Args:
            views: what is chosen from.
            loadings_VNG: absolute loadings, which make the groups.
            scores_VN: rank inside a group.
            keep: K.
        """
        num, num_groups = loadings_VNG.shape[1:]
        group_VN = semantic_groups(loadings_VNG, views.real_VN)
        order_VN = group_order(group_VN, scores_VN)
        group_VN = group_VN.gather(1, order_VN)
        units_VNC = unit_rows(views, order_VN)
        factor = keep / self.threshold_tokens if views.has_cls else max(576 * keep / (self.threshold_tokens * num), 1)
        threshold_V = factor * mean_similarity(units_VNC, views.real_VN.sum(-1), halved=not views.has_cls)
        kept_VN = suppress_similar(similar_pairs(units_VNC, group_VN, threshold_V))
        sizes_VG, kept_VG = (count(x, group_VN, num_groups) for x in (torch.ones_like(kept_VN), kept_VN))
        slots, cap = keep - views.has_cls, self.cap * ceil(keep / self.cap_tokens)
        budgets_VG = group_budgets(sizes_VG, kept_VG, target=keep, slots=slots, floor=self.floor, cap=cap)
        return order_VN.gather(1, fill_budgets(group_VN, kept_VN, budgets_VG, slots))


@dataclass(frozen=True, slots=True)
class Views:
    """What is chosen from: views of one size.

    Attributes:
        tokens_VNC: float32.
        real_VN: bool, False for tokens that take no part.
        has_cls: a CLS row is one of the rows kept of each view.
    """

    tokens_VNC: Tensor
    real_VN: Tensor
    has_cls: bool


def centre(views: Views) -> Tensor:
    """Return the sigmoid of the features less each token's mean over them, (V, N, C): what the PCA reads."""
    squashed_VNC = views.tokens_VNC.sigmoid()
    squashed_VNC -= squashed_VNC.mean(-1, keepdim=True)
    return squashed_VNC.masked_fill_(~views.real_VN[:, :, None], 0.0)


def sketched_loadings(centred_VNC: Tensor, sketch_SG: Tensor, num_iterations: int) -> Tensor:
    """Return the tokens' absolute loadings on the leading components, largest singular value first, (V, N, G).

    Randomised PCA with the tokens as variables: power iteration from the sketch finds the range of the matrix, tall
    side first; inside it the decomposition is exact.

    Args:
        centred_VNC: float32.
        sketch_SG: standard normal, S = min(N, C).
        num_iterations: 0 for the sketch alone.
    """
    by_token = centred_VNC.shape[1] <= centred_VNC.shape[2]
    flat_VSL = centred_VNC if by_token else centred_VNC.mT
    basis_VLG = torch.linalg.qr((sketch_SG.mT @ flat_VSL).mT).Q
    for _ in range(num_iterations):
        basis_VSG = torch.linalg.qr(flat_VSL @ basis_VLG).Q
        basis_VLG = torch.linalg.qr((basis_VSG.mT @ flat_VSL).mT).Q
    left_VSG, _, right_VGG = torch.linalg.svd(flat_VSL @ basis_VLG, full_matrices=False)
    loadings_VNG: Tensor = left_VSG if by_token else basis_VLG @ right_VGG.mT
    return loadings_VNG.abs()


def exact_loadings(centred_VNC: Tensor, num_groups: int) -> Tensor:
    """Return what `sketched_loadings` approximates, (V, N, G)."""
    loadings_VNG: Tensor = torch.linalg.svd(centred_VNC, full_matrices=False).U[:, :, :num_groups]
    return loadings_VNG.abs()


def semantic_groups(loadings_VNG: Tensor, real_VN: Tensor) -> Tensor:
    """Return the component each token loads on most, the first of equals, int64 (V, N); G where it takes no part."""
    return loadings_VNG.argmax(-1).masked_fill(~real_VN, loadings_VNG.shape[-1])


def group_order(group_VN: Tensor, scores_VN: Tensor) -> Tensor:
    """Return the tokens group by group, best first, equal scores in token order, int64 (V, N)."""
    best_VN = torch.argsort(scores_VN, dim=1, descending=True, stable=True)
    return best_VN.gather(1, torch.argsort(group_VN.gather(1, best_VN), dim=1, stable=True))


def unit_rows(views: Views, order_VN: Tensor) -> Tensor:
    """Return the tokens at length 1 in the order given, zeros for those that take no part, (V, N, C)."""
    scale_VN = views.real_VN / torch.linalg.vector_norm(views.tokens_VNC, dim=-1).clamp(min=1e-12)
    num_views, num = order_VN.shape
    flat_VN = order_VN + num * torch.arange(num_views, device=order_VN.device)[:, None]
    rows_VNC = views.tokens_VNC.flatten(0, 1)[flat_VN]
    rows_VNC *= scale_VN.gather(1, order_VN)[:, :, None]
    return rows_VNC


def mean_similarity(units_VNC: Tensor, num_V: Tensor, *, halved: bool) -> Tensor:
    """Return the mean cosine over all pairs of tokens, (V,), without computing the pairs.

    Args:
        units_VNC: rows of length 1, or 0 for tokens that take no part.
        num_V: int64, how many take part.
        halved: the sum over pairs and diagonal over num * num instead, as upstream without CLS.
    """
    diagonal_V: Tensor = torch.linalg.vector_norm(units_VNC, dim=(1, 2)).square()
    pairs_V = (units_VNC.sum(1).square().sum(-1) - diagonal_V) / 2
    if halved:
        return (pairs_V + diagonal_V) / num_V.square().clamp(min=1)
    return pairs_V / (num_V * (num_V - 1) / 2).clamp(min=1)


def similar_pairs(units_VNC: Tensor, group_VN: Tensor, threshold_V: Tensor) -> Tensor:
    """Return whether token i stands before token j of its group and is more similar than allowed, bool (V, N, N).

    Similarities are computed in panels of rows, each only as far as the groups of its rows reach.

    Args:
        units_VNC: rows of length 1, group by group.
        group_VN: int64, ascending.
        threshold_V: exclusive.
    """
    num = group_VN.shape[1]
    starts = range(0, num, PANEL)
    end_VN = torch.searchsorted(group_VN, group_VN, right=True)
    stops = end_VN[:, [min(start + PANEL, num) - 1 for start in starts]].amax(0).tolist()
    similarity_VNN = units_VNC.new_zeros(len(units_VNC), num, num)
    for start, stop in zip(starts, stops, strict=True):
        panel_VPC = units_VNC[:, start : start + PANEL]
        similarity_VNN[:, start : start + PANEL, start:stop] = panel_VPC @ units_VNC[:, start:stop].mT
    together_VNN = group_VN[:, :, None] == group_VN[:, None, :]
    return (together_VNN & (similarity_VNN > threshold_V[:, None, None])).triu(1)


def suppress_similar(similar_VNN: Tensor) -> Tensor:
    """Return what greedy suppression keeps, in all groups and views at once, bool (V, N).

    A token is kept unless a kept one before it is too similar. Starting from all, each round settles at least the
    first token that is not settled, so what no longer changes is the greedy answer.

    Args:
        similar_VNN: bool, upper triangle: whether token i, if kept, suppresses token j.
    """
    weights_VNN = similar_VNN.float()
    kept_V1N = weights_VNN.new_ones(len(weights_VNN), 1, weights_VNN.shape[1])
    while True:
        for _ in range(ROUNDS):
            before_V1N, kept_V1N = kept_V1N, (kept_V1N @ weights_VNN == 0).float()
        if torch.equal(before_V1N, kept_V1N):
            return kept_V1N[:, 0].bool()


def count(flags_VN: Tensor, group_VN: Tensor, num_groups: int) -> Tensor:
    """Return how many tokens of each group are flagged, int64 (V, G); those that take no part are not counted."""
    counts_VG = group_VN.new_zeros(len(group_VN), num_groups + 1)
    return counts_VG.scatter_add_(1, group_VN, flags_VN.long())[:, :-1]


def group_budgets(sizes_VG: Tensor, kept_VG: Tensor, *, target: int, slots: int, floor: int, cap: int) -> Tensor:
    """Split `slots` tokens over the groups in proportion to what suppression kept of them, int64 (V, G).

    Args:
        sizes_VG: int64, tokens per group.
        kept_VG: int64, how many of them suppression kept.
        target: the groups' limits grow by one, up to their sizes, until they add up to this.
        slots: the budgets' sum where sizes and target allow it and the floors do not exceed it.
        floor: what each group gets before the split, if it is large enough.
        cap: limit of a group to start from, as is what was kept of it.
    """
    low_VG = sizes_VG.clamp(max=floor)
    high_VG = kept_VG.clamp(max=cap)
    step_T1 = torch.arange(target + 1, device=sizes_VG.device)[:, None]
    room_VT = torch.minimum(high_VG[:, None] + step_T1, sizes_VG[:, None]).sum(-1)
    high_VG = torch.minimum(high_VG + (room_VT < target).sum(-1, keepdim=True), sizes_VG)
    rest_V1 = (slots - low_VG.sum(-1, keepdim=True)).clamp(min=0)
    share_VG = kept_VG / kept_VG.sum(-1, keepdim=True).clamp(min=1)
    # a float32 cumsum on a CPU adds in float64; written out, so that halves round alike on every device
    ends_VG = (share_VG.double().cumsum(-1).float() * rest_V1).round().long()
    budgets_VG = torch.minimum(low_VG + ends_VG.diff(prepend=torch.zeros_like(rest_V1)), high_VG)
    missing_V1 = rest_V1 + (low_VG - budgets_VG).sum(-1, keepdim=True)
    return budgets_VG + share_missing(missing_V1, high_VG - budgets_VG, kept_VG)


def share_missing(missing_V1: Tensor, room_VG: Tensor, kept_VG: Tensor) -> Tensor:
    """Return each group's part of the missing tokens, int64 (V, G): all its room, most kept first, ties in order."""
    order_VG = torch.argsort(kept_VG, dim=1, descending=True, stable=True)
    room_VG = room_VG.gather(1, order_VG)
    given_VG = torch.minimum(room_VG, (missing_V1 - room_VG.cumsum(1) + room_VG).clamp(min=0))
    return torch.zeros_like(room_VG).scatter_(1, order_VG, given_VG)


def fill_budgets(group_VN: Tensor, kept_VN: Tensor, budgets_VG: Tensor, slots: int) -> Tensor:
    """Return where the chosen tokens stand, group by group, what suppression kept first, int64 (V, slots).

    Args:
        group_VN: int64, ascending, G for tokens that take no part; best first inside a group.
        kept_VN: bool.
        budgets_VG: int64; what exceeds `slots` is cut off, what is short is filled by tokens in order.
        slots: tokens wanted.
    """
    order_VN = torch.argsort(2 * group_VN + ~kept_VN, dim=1, stable=True)
    rank_VN = torch.arange(group_VN.shape[1], device=group_VN.device) - torch.searchsorted(group_VN, group_VN)
    budgets_VG = torch.nn.functional.pad(budgets_VG, (0, 1))
    passed_VN = rank_VN >= budgets_VG.gather(1, group_VN)
    return order_VN.gather(1, torch.argsort(passed_VN.to(torch.uint8), dim=1, stable=True)[:, :slots])
