"""The selection rules as their papers' codes carry them out: loops and full matrices, for timing beside dpbench's.

Written from descriptions of the official codes, which are not copied here. Each function selects from one image and
takes what the method reads, and returns what its code hands on; they serve for timing only.

Shape letters: N visual tokens, V views, H attention heads, D the tokens' width, d the keys' width, K rows kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.official_prunesid import prunesid
from dpbench.method import Reduction, VisualTokens


def holov(visual: VisualTokens, keep: int, num_crops: int = 16) -> Reduction:
    """Return HoloV's rows: crop by crop a variance, a score, a quota, a topk and a gather, zero rows behind them."""
    attention_N = visual.cls_attention[max(visual.cls_attention)].mean(0)
    order_N = visual.slot_N.argsort(stable=True)
    features, attention = visual.embeds_ND[order_N], attention_N[order_N]
    sizes = [len(features) // num_crops + (crop < len(features) % num_crops) for crop in range(num_crops)]
    crops = list(zip(features.split(sizes), attention.split(sizes), strict=True))
    scores = torch.stack([_crop_score(rows, weights) for rows, weights in crops])
    shares = scores / (scores.sum() + 1e-6)
    quotas = (shares * keep).floor().long()
    left = keep - int(quotas.sum().item())
    for crop in shares.topk(min(left, num_crops)).indices.tolist():
        quotas[crop] += 1
    kept, rows, start = [], [], 0
    for quota, size in zip(quotas.tolist(), sizes, strict=True):
        part = attention[start : start + size]
        best = torch.arange(size, device=part.device) if quota >= size else part.topk(quota).indices
        kept.append(order_N[start + best])
        rows.append(features[start : start + size][best])
        start += size
    lost = keep - sum(map(len, kept))
    kept.append(order_N.new_full((lost,), -1))
    rows.append(features.new_zeros(lost, features.shape[1]))
    return Reduction(torch.cat(kept), embeds_KD=torch.cat(rows))


def _crop_score(rows_nD: Tensor, attention_n: Tensor) -> Tensor:
    """Return HoloV's score of one crop of at least two tokens: its attention and the variance of its similarities."""
    others = len(rows_nD) - 1
    units_nD = rows_nD / (rows_nD.norm(dim=-1, keepdim=True) + 1e-6)
    cosine_nn = (units_nD @ units_nD.T) * (1 - torch.eye(len(rows_nD), device=rows_nD.device))
    mean_n1 = cosine_nn.sum(-1, keepdim=True) / others
    variance_n = ((cosine_nn - mean_n1) ** 2).sum(-1) / others
    scaled_n = attention_n * 1000
    gamma = scaled_n.abs().mean() / (variance_n.abs().mean() + 1e-6)
    score: Tensor = (scaled_n + 0.09 * gamma * variance_n).mean()
    return score


def visionzip(visual: VisualTokens, keep: int) -> Reduction:
    """Return VisionZip's rows: the base view's, the tiles' along the canvas, the tiles' CLS rows, their merged rows."""
    assert visual.cls_hidden_VC is not None
    assert visual.keys_Nd is not None
    num_views = len(visual.cls_hidden_VC)
    contextual = round(keep // num_views * 10 / 64)
    dominant = keep // num_views - contextual
    attention_VN = visual.cls_attention[max(visual.cls_attention)].sum(0).unflatten(0, (num_views, -1))
    hidden_VNC = torch.cat([visual.cls_hidden_VC[:, None], visual.hidden_NC.unflatten(0, (num_views, -1))], 1)
    keys_VNd = visual.keys_Nd.unflatten(0, (num_views, -1))
    keys_VNd = torch.cat([keys_VNd[:, :1], keys_VNd], 1)
    top = attention_VN.topk(dominant - 1, dim=1).indices + 1
    mask = torch.ones(hidden_VNC.shape[:2], dtype=torch.bool, device=top.device)
    mask = mask.scatter(1, torch.cat([torch.zeros_like(top[:, :1]), top], 1), False)
    kept = hidden_VNC.masked_select(~mask[:, :, None]).view(num_views, dominant, -1)
    keys = keys_VNd.masked_select(mask[:, :, None]).view(num_views, -1, keys_VNd.shape[-1])
    rest = hidden_VNC.masked_select(mask[:, :, None]).view(num_views, -1, hidden_VNC.shape[-1])
    keys = keys / keys.norm(dim=-1, keepdim=True)
    step = max(1, keys.shape[1] // contextual)
    targets = torch.arange(0, keys.shape[1], step, device=keys.device)[:contextual]
    others = ~torch.isin(torch.arange(keys.shape[1], device=keys.device), targets)
    nearest = (keys[:, others] @ keys[:, targets].mT).argmax(-1)
    joins = torch.nn.functional.one_hot(nearest, contextual).to(rest.dtype)
    means = (joins.mT @ rest[:, others]) / joins.sum(1).clamp(min=1)[:, :, None]
    merged = rest[:, targets] + means
    offsets = torch.arange(num_views, device=top.device)[:, None] * attention_VN.shape[1]
    tokens = (top.sort(1).values - 1 + offsets)[1:].flatten()
    tiles = kept[1:, 1:].flatten(0, 1)[visual.slot_N[tokens].argsort(stable=True)]
    rows = torch.cat([kept[0], merged[0], tiles, kept[1:, 0], merged[1:].flatten(0, 1)])
    return Reduction(tokens.new_full((len(rows),), -1), hidden_KC=rows)


def hired(visual: VisualTokens, keep: int, alpha: float = 0.5) -> Reduction:
    """Return HiRED's tokens: the base view's half by the select layer, the tiles' shares by the first layer's bands."""
    scores_N = visual.cls_attention[max(visual.cls_attention)].sum(0)
    num_views = len(visual.cls_attention[0][0]) // _view_size(visual)
    if num_views == 1:
        return Reduction(scores_N.topk(keep).indices.sort().values)
    scores_VN = scores_N.unflatten(0, (num_views, -1))
    num = scores_VN.shape[1]
    base = min(int(keep * alpha), num)
    rest, marked = min(keep - base, (num_views - 1) * num), int(num * (1 - alpha))
    mask_VN = torch.zeros_like(scores_VN, dtype=torch.bool)
    mask_VN[0, scores_VN[0].topk(base).indices] = True
    flags = torch.zeros(num, device=scores_N.device)
    flags[visual.cls_attention[0].sum(0)[:num].topk(marked).indices] = 1
    counts = flags.view(num_views - 1, -1).sum(1)
    budgets = (counts / counts.sum() * rest).long().clamp(max=num)
    for tile, budget in enumerate(budgets.tolist(), start=1):
        mask_VN[tile, scores_VN[tile].topk(budget).indices] = True
    indices_K = mask_VN.flatten().nonzero()[:, 0]
    return Reduction(indices_K[visual.slot_N[indices_K].argsort()])


def _view_size(visual: VisualTokens) -> int:
    """Return how many tokens each view of the image has."""
    return int((visual.view_N == 0).sum())


def divprune(visual: VisualTokens, keep: int) -> Reduction:
    """Return DivPrune's tokens: each step gathers the distances to all picks so far and takes the farthest token."""
    units_ND = visual.embeds_ND / visual.embeds_ND.norm(dim=-1, keepdim=True)
    distance_NN = 1 - units_ND @ units_ND.T
    picks = [distance_NN.topk(2, dim=0, largest=False).values[1].argmax()]
    while len(picks) < keep:
        picks.append(distance_NN[torch.stack(picks)].min(0).values.argmax())
    return Reduction(torch.stack(picks).sort().values)


def cdpruner(visual: VisualTokens, keep: int) -> Reduction:
    """Return CDPruner's tokens without a question: every view's process, by the incremental Cholesky factor."""
    num_views = len(visual) // _view_size(visual)
    units_VND = visual.embeds_ND.unflatten(0, (num_views, -1))
    units_VND = units_VND / units_VND.norm(dim=-1, keepdim=True)
    relevance_VN = torch.ones_like(units_VND[..., 0])
    kernel_VNN = relevance_VN[:, :, None] * (units_VND @ units_VND.mT) * relevance_VN[:, None]
    num, views = keep // num_views, torch.arange(num_views, device=kernel_VNN.device)
    factor_KVN = kernel_VNN.new_zeros(num, num_views, kernel_VNN.shape[-1])
    gain_VN = kernel_VNN.diagonal(dim1=1, dim2=2).clone()
    picks = []
    for step in range(num):
        pick_V = gain_VN.argmax(-1)
        before_KVN = factor_KVN[:step]
        row_VN = kernel_VNN[views, pick_V] - torch.einsum("kv,kvn->vn", before_KVN[:, views, pick_V], before_KVN)
        factor_KVN[step] = row_VN / gain_VN[views, pick_V].clamp(min=1e-12).sqrt()[:, None]
        gain_VN = gain_VN - factor_KVN[step].square()
        gain_VN[views, pick_V] = -torch.inf
        picks.append(pick_V)
    indices_VK = torch.stack(picks, 1).sort(1).values + views[:, None] * kernel_VNN.shape[-1]
    indices_K = indices_VK.flatten()
    return Reduction(indices_K[visual.slot_N[indices_K].argsort(stable=True)])


RULES = {
    "holov": holov,
    "visionzip": visionzip,
    "hired": hired,
    "divprune": divprune,
    "cdpruner": cdpruner,
    "prunesid": prunesid,
}
"""Method -> its official rule."""


def crop_products(visual: VisualTokens, num_crops: int = 16) -> list[Tensor]:
    """Return the inner products inside HoloV's crops, as one plain product each."""
    return [rows @ rows.T for rows in visual.embeds_ND.split(-(-len(visual) // num_crops))]


def view_products(visual: VisualTokens) -> Tensor:
    """Return the inner products inside each view, CDPruner's kernel before the relevance."""
    rows_VND = visual.embeds_ND.unflatten(0, (-1, _view_size(visual)))
    return rows_VND @ rows_VND.mT


def all_products(visual: VisualTokens) -> Tensor:
    """Return the inner products of all pairs, which DivPrune's first pick reads."""
    return visual.embeds_ND @ visual.embeds_ND.T


PRODUCTS = {"holov": crop_products, "cdpruner": view_products, "divprune": all_products}
"""Method -> the inner products that both sides read, alone."""
