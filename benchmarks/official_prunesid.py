"""PruneSID's selection as its paper's code carries it out, for timing beside dpbench's.

Written from a description of the official code, which is not copied here: similarities once per group, suppression
round by round, budgets and ranks group by group. Each tile's tokens lie in their own place, as in dpbench by default.

Shape letters: V views, N tokens of a view, G groups, K rows of a view, C the tower's width.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from dpbench.method import Reduction, VisualTokens


def prunesid(visual: VisualTokens, keep: int) -> Reduction:
    """Return PruneSID's rows: the base view's group by group, the tiles' along the canvas, the tiles' CLS rows."""
    assert visual.cls_hidden_VC is not None
    num_views = len(visual.cls_hidden_VC)
    tokens_VNC, rows = visual.hidden_NC.unflatten(0, (num_views, -1)), keep // num_views
    scores_VN = visual.cls_attention[max(visual.cls_attention)].sum(0).unflatten(0, (num_views, -1)).float()
    torch.manual_seed(visual.generator.initial_seed())
    squashed_VCN = tokens_VNC.float().sigmoid().mT
    centred_VCN = squashed_VCN - squashed_VCN.mean(1, keepdim=True)
    loadings_VNG = torch.pca_lowrank(centred_VCN, q=rows // 4, center=False, niter=2)[2].abs()
    member_VGN = torch.nn.functional.one_hot(loadings_VNG.argmax(-1), rows // 4).mT.bool()
    rank_VGN, kept_VG = _suppressed(tokens_VNC, member_VGN, scores_VN, rows)
    sizes = member_VGN.sum(-1).tolist()
    tokens = []
    for view in range(num_views):
        budgets = _budgets(sizes[view], kept_VG[view].tolist(), rows)
        tokens.append(
            torch.cat([rank_VGN[view, group].argsort(descending=True)[:num] for group, num in enumerate(budgets)])
            + view * tokens_VNC.shape[1]
        )
    tiles = torch.cat([tokens[0][:0], *tokens[1:]])
    tiles = tiles[visual.slot_N[tiles].argsort(stable=True)]
    cls_VC, hidden = visual.cls_hidden_VC, visual.hidden_NC
    kept = torch.cat([cls_VC[:1], hidden[tokens[0]], hidden[tiles], cls_VC[1:]])
    return Reduction(tokens[0].new_full((len(kept),), -1), hidden_KC=kept)


def _suppressed(tokens_VNC: Tensor, member_VGN: Tensor, scores_VN: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return each group's ranks, (V, G, N), members first and those not suppressed in front, and how many those are."""
    num_groups, num = member_VGN.shape[1:]
    units_VNC = tokens_VNC / tokens_VNC.norm(dim=-1, keepdim=True)
    similarity_VNN = (units_VNC @ units_VNC.mT).float()
    threshold_V = rows / 32 * similarity_VNN.triu(1).sum((1, 2)) / (num * (num - 1) / 2)
    similarity_VGNN = similarity_VNN[:, None].repeat(1, num_groups, 1, 1)
    similarity_VGNN.masked_fill_(~(member_VGN[..., None] | member_VGN[:, :, None]), 0.0)
    left_VGN = torch.where(member_VGN, scores_VN[:, None], 0.0)
    rank_VGN, step = torch.where(member_VGN, scores_VN[:, None], -1.0), 0
    while left_VGN.sum() > 0:
        score_VG1, best_VG1 = left_VGN.max(-1, keepdim=True)
        pseudo_VG1 = torch.where(score_VG1 > 0, 1000.0 - step, rank_VGN.gather(-1, best_VG1))
        rank_VGN.scatter_(-1, best_VG1, pseudo_VG1)
        row_VGN = similarity_VGNN.gather(2, best_VG1[..., None].expand(-1, -1, 1, num))[:, :, 0]
        left_VGN.masked_fill_(row_VGN > threshold_V[:, None, None], 0.0).scatter_(-1, best_VG1, 0.0)
        step += 1
    return rank_VGN, (rank_VGN > 1000.0 - num).sum(-1)


def _budgets(sizes: list[int], kept: list[int], rows: int) -> list[int]:
    """Return how many tokens each group of a view gives, one less than the view's rows in all."""
    low = [min(1, size) for size in sizes]
    high = [min(5 * ceil(rows / 64), size, num) for size, num in zip(sizes, kept, strict=True)]
    while sum(high) < rows:
        high = [min(limit + 1, size) for limit, size in zip(high, sizes, strict=True)]
    rest = max(0, rows - sum(low) - 1)
    shares = torch.tensor(kept, dtype=torch.float32)
    ends = ((shares / shares.sum()).cumsum(0) * rest).round().long()
    steps = ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    given = [min(floor + step, limit) for floor, step, limit in zip(low, steps, high, strict=True)]
    missing = rest + sum(low) - sum(given)
    for group in sorted(range(len(kept)), key=lambda group: -kept[group]):
        more = min(high[group] - given[group], missing)
        given[group] += more
        missing -= more
    return given
