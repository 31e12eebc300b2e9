"""HoloV (Zou et al., NeurIPS 2025, arXiv:2510.02912): every crop of the image keeps a share of the budget.

A crop's share follows its tokens' attention and the variance of their similarities; inside a crop attention decides.
Training-free, before the LLM, after the projector.

Read against: obananas/HoloV @ 07c159b, llava/model (the Qwen2.5-VL files @ dee615c)
Same as upstream:  crops are runs of the raster, not windows, the first ones a token longer where N does not divide;
                   quotas are rounded down, what is left goes to the heaviest crops, one each; a crop of one token
                   is scored without the factor 1000; rows come crop by crop and by falling attention, in raster order
                   where the whole crop stays; a quota larger than its crop is lost to zero rows (`parity`).
Differs:           ties go to the earlier token or crop (upstream leaves them to topk); float32 throughout (upstream
                   float16); a crop that unpadding or a small N leaves empty takes part in nothing.
LLaVA-NeXT:        one budget over all views, and the tiles laid out as one unpadded map before the runs are cut, as
                   upstream.
Qwen2.5-VL:        each token is ranked by its own score; with `parity=true` tokens in raster order are ranked by the
                   scores in the tower's window order, as upstream. The span is the image's either way (upstream's
                   starts one early: the token before the image can be dropped, the image's last one is never).

The variance hardly matters: scaled by its own mean it multiplies the score of every crop by 1 + 0.09 v / (v + 1e-6), a
constant unless a crop's tokens are orthogonal.

Shape letters: N visual tokens, P crops, M slots of a crop (the longest has M tokens), K rows kept, D the LLM's width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens

WINDOW = 4
"""Tokens along a window's side in Qwen2.5-VL's tower: 112 pixels, 28 a token."""


@dataclass(frozen=True, kw_only=True)
class HoloV(Method):
    """Keep the most attended tokens of each strip of the image, as many as the strip's share of attention (HoloV).

    num_crops: strips per image. Default None: 16 where CLS attention ranks, 1024/576 * N/keep without a CLS token.
    variance_weight: weight of the similarity variance in a crop's score, lambda. Default 0.09.
    attention_scale: factor on attention in a crop's score. Default 1000.
    eps: keeps norms, variances and weights away from zero. Default 1e-6.
    parity: default None: quotas larger than their crop are lost to zero rows, as in the official code; otherwise more
        real tokens are kept than in the original's budget. false gives these rows to the most attended tokens left.
        true is None, and Qwen2.5-VL's scores in window order for tokens in raster order, as in the official code.
    """

    anyres = "global"
    num_crops: int | None = None
    variance_weight: float = 0.09
    attention_scale: float = 1000.0
    eps: float = 1e-6
    parity: bool | None = None

    def __post_init__(self) -> None:
        if self.num_crops is not None and self.num_crops < 1:
            raise ConfigError(f"HoloV needs num_crops >= 1, got {self.num_crops}")
        if self.parity is not False and self.positions == "original":
            raise ConfigError("HoloV's zero rows have no original position; use parity=false or positions=compact")

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the CLS row of the select layer, else for what each token receives."""
        for name in ("cls_attention", "received_attention_N"):
            if name in provides:
                return frozenset({name})
        raise UnsupportedError("holov needs the vision tower's attention, CLS or received, and this backbone has none")

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Weigh the crops, split the budget over them, fill each quota by attention."""
        attention_N = patch_attention(visual)
        if self.parity and not visual.cls_attention:
            attention_N = attention_N[window_order(visual.row_N, visual.col_N)]
        crops = cut_crops(visual.slot_N, self.num_crops or default_crops(visual, keep))
        attention_PM = attention_N[crops.index_PM].masked_fill(~crops.real_PM, 0.0)
        embeds_PMD = crop_rows(visual.embeds_ND, crops.index_PM)
        variance_PM = similarity_variance(embeds_PMD.float(), crops.real_PM, self.eps)
        relevance_P = crop_relevance(attention_PM, crops, self.attention_scale)
        scores_P = crop_scores(relevance_P, crop_mean(variance_PM, crops), weight=self.variance_weight, eps=self.eps)
        quota_P = crop_quotas(crop_weights(scores_P, self.eps), keep)
        if self.parity is False:
            quota_P = share_overflow(quota_P, attention_PM, crops, keep)
        indices_K = fill_quotas(quota_P, attention_PM, crops, keep)
        return Reduction(indices_K, embeds_KD=rows_or_zeros(visual.embeds_ND, indices_K), scores_N=attention_N)


@dataclass(frozen=True, slots=True)
class Crops:
    """The image as P runs of its tokens, padded to the longest.

    Attributes:
        index_PM: int64, the token in each slot.
        real_PM: bool, False where the slot is padding.
        size_P: int64, tokens per crop.
    """

    index_PM: Tensor
    real_PM: Tensor
    size_P: Tensor


def patch_attention(visual: VisualTokens) -> Tensor:
    """Return the attention that ranks, (N,) float32: the CLS row's head mean, else what each token receives."""
    if visual.cls_attention:
        return visual.cls_attention[max(visual.cls_attention)].float().mean(0)
    assert visual.received_attention_N is not None, "asked for in needs"
    return visual.received_attention_N.float()


def window_order(row_N: Tensor, col_N: Tensor) -> Tensor:
    """Return the tokens in the order of Qwen2.5-VL's tower: window by window, each in raster order, int64 (N,)."""
    window_N = (row_N // WINDOW) * (col_N.max() + 1) + col_N // WINDOW
    return torch.argsort(window_N, stable=True)


def default_crops(visual: VisualTokens, keep: int) -> int:
    """Return upstream's number of crops: 16 on LLaVA at any budget, a ratio on Qwen2.5-VL that is 16 at 64 of 576."""
    return 16 if visual.cls_attention else max(1, int(1024 / 576 * len(visual) / keep))


def cut_crops(slot_N: Tensor, num_crops: int) -> Crops:
    """Cut the tokens in reading order into runs of equal length, the first ones longer by one if need be.

    Args:
        slot_N: int64, each token's place in reading order, -1 for tokens that belong to no crop.
        num_crops: P, lowered to N.
    """
    num, read_N = len(slot_N), slot_N >= 0
    num_crops = min(num_crops, num)
    order_N = torch.argsort(slot_N.masked_fill(~read_N, torch.iinfo(torch.int64).max), stable=True)
    total = read_N.sum()
    crop_P = torch.arange(num_crops, device=slot_N.device)
    size_P = total // num_crops + (crop_P < total % num_crops)
    start_P = size_P.cumsum(0) - size_P
    slot_M = torch.arange(-(-num // num_crops), device=slot_N.device)
    index_PM = order_N[(start_P[:, None] + slot_M).clamp(max=num - 1)]
    return Crops(index_PM, slot_M < size_P[:, None], size_P)


def crop_rows(embeds_ND: Tensor, index_PM: Tensor) -> Tensor:
    """Return the rows of each crop's slots, (P, M, D); no copy on a CPU where the slots are all rows in their order."""
    index_N = index_PM.flatten()
    # on a GPU the comparison would wait for it
    if index_N.is_cpu and torch.equal(index_N, torch.arange(len(embeds_ND))):
        return embeds_ND.view(*index_PM.shape, -1)
    return embeds_ND.index_select(0, index_N).view(*index_PM.shape, -1)


def crop_mean(values_PM: Tensor, crops: Crops) -> Tensor:
    """Return the mean over each crop's tokens, (P,); padding must hold 0, and an empty crop gives 0."""
    return values_PM.sum(-1) / crops.size_P.clamp(min=1)


def similarity_variance(embeds_PMD: Tensor, real_PM: Tensor, eps: float) -> Tensor:
    """Return how much each token's cosine similarities to the rest of its crop vary, (P, M), 0 in padding.

    A token's similarity to itself counts as 0 in the sum of squares but not in the number of terms, as upstream.

    Args:
        embeds_PMD: float32.
        real_PM: bool, False in padding.
        eps: added to every norm.
    """
    products_PMM = embeds_PMD @ embeds_PMD.mT
    inverse_PM = (products_PMM.diagonal(dim1=-2, dim2=-1).sqrt() + eps).reciprocal() * real_PM
    # one pass scales the columns and blanks the padding; the rows' lengths come after the sums over them
    parts_PMM = products_PMM.mul_(inverse_PM[:, None, :])
    parts_PMM.diagonal(dim1=-2, dim2=-1).zero_()
    others_P1 = (real_PM.sum(-1, keepdim=True) - 1).clamp(min=1)
    mean_PM = parts_PMM.sum(-1) * inverse_PM / others_P1
    squares_PM = (torch.linalg.vector_norm(parts_PMM, dim=-1) * inverse_PM).square()
    # sum of (c - m)^2 over n terms of which one is 0 and the others add up to (n - 1) m
    variance_PM: Tensor = squares_PM / others_P1 - mean_PM.square() * (others_P1 - 1) / others_P1
    return variance_PM.clamp(min=0) * real_PM


def crop_relevance(attention_PM: Tensor, crops: Crops, scale: float) -> Tensor:
    """Return each crop's mean attention times `scale`, (P,); a crop of one token goes unscaled, as upstream."""
    return crop_mean(attention_PM, crops) * torch.where(crops.size_P == 1, 1.0, scale)


def crop_scores(relevance_P: Tensor, variance_P: Tensor, *, weight: float, eps: float) -> Tensor:
    """Return a crop's score, (P,): its mean attention plus its mean variance brought to the attention's magnitude."""
    gamma_P = relevance_P / (variance_P + eps)
    return relevance_P + weight * gamma_P * variance_P


def crop_weights(scores_P: Tensor, eps: float) -> Tensor:
    """Return each crop's share of the budget, (P,), summing to just under 1."""
    return scores_P / (scores_P.sum() + eps)


def crop_quotas(weights_P: Tensor, keep: int) -> Tensor:
    """Return tokens per crop, int64 (P,), uncapped: shares rounded down, what is left one each to the heaviest."""
    quota_P = (weights_P * keep).floor().long()
    return quota_P + (descending_rank(weights_P) < keep - quota_P.sum())


def share_overflow(quota_P: Tensor, attention_PM: Tensor, crops: Crops, keep: int) -> Tensor:
    """Return quotas capped at the crops' sizes, the surplus given to the most attended tokens left, int64 (P,)."""
    capped_P = torch.minimum(quota_P, crops.size_P)
    left_PM = crops.real_PM & (descending_rank(attention_PM) >= capped_P[:, None])
    rank_PM = descending_rank(attention_PM.masked_fill(~left_PM, -1.0).flatten()).view_as(left_PM)
    return capped_P + (left_PM & (rank_PM < keep - capped_P.sum())).sum(-1)


def fill_quotas(quota_P: Tensor, attention_PM: Tensor, crops: Crops, keep: int) -> Tensor:
    """Return the kept tokens crop by crop, most attended first, padded with -1, int64 (K,).

    Args:
        quota_P: int64; a crop whose quota reaches its size is kept whole, in raster order.
        attention_PM: at least 0; padding comes last and holds 0, so that it loses every tie.
        crops: what the quotas are of.
        keep: K, at most N.
    """
    slot_M = torch.arange(attention_PM.shape[1], device=attention_PM.device)
    order_PM = torch.argsort(attention_PM, dim=-1, descending=True, stable=True)
    order_PM = torch.where((quota_P >= crops.size_P)[:, None], slot_M, order_PM)
    taken_PM = slot_M < torch.minimum(quota_P, crops.size_P)[:, None]
    tokens_PM = crops.index_PM.gather(-1, order_PM).masked_fill(~taken_PM, -1)
    first_K = torch.argsort((~taken_PM).flatten().to(torch.uint8), stable=True)[:keep]
    return tokens_PM.flatten()[first_K]


def descending_rank(scores: Tensor) -> Tensor:
    """Return each score's place along the last dimension, 0 for the highest, ties to the earlier."""
    return torch.argsort(scores, dim=-1, descending=True, stable=True).argsort(-1)


def rows_or_zeros(embeds_ND: Tensor, indices_K: Tensor) -> Tensor:
    """Gather the kept rows, zeros for -1, (K, D)."""
    rows_KD, lost_K = embeds_ND.index_select(0, indices_K.clamp(min=0)), indices_K < 0
    if rows_KD.is_cpu:
        rows_KD[lost_K] = 0.0
        return rows_KD
    # finding the lost rows would wait for the GPU
    return rows_KD.masked_fill_(lost_K[:, None], 0.0)
