"""Vectors of rows that are merged in the tower's space: their content, and the order of several views' rows.

Shape letters: B images, V views, N patches of a view, S patches behind a CLS row, C the tower's width, M patches
kept of a view, K rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors.tokens import square_views
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decision import Rule, reduce_image, select_view
from dpbench.method import Method, VisualTokens

TOLERANCE = 1e-4
"""How far a merged row may be from the stored one, absolutely."""
NUM_PATCHES, WIDTH, LAYER = 576, 8, 0
"""What a packing vector does not store: patches of a view, the width of its rows, the number of the select layer."""
SIGNALS = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})


def check_merging(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce each image, and compare the kept tokens and the rows, CLS first and the merged ones last."""
    configured = configure(method, vector)
    configured.needs(SIGNALS)
    hidden_BSC, keys_BSd = vector.float32("hidden"), vector.float32("key_metric")
    keep = vector.integer("dominant") + vector.integer("contextual")
    for image, hidden_SC in enumerate(hidden_BSC):
        visual = _build_views(hidden_SC[None], keys_BSd[image, 1:], vector.tensor("cls_attn")[image], width=1)
        reduction = reduce_image(configured, visual, Rule(BudgetRequest(keep=keep)), num_read=len(visual))
        kept_K = _pad_indices(vector.tensor("kept_patches")[image], vector.integer("contextual"))
        yield from differences(f"tokens of image {image}", reduction.indices_K, kept_K)
        merged_KC = _merge_pairs(
            hidden_SC, vector.tensor("contextual_targets")[image], vector.tensor("merge_pairs")[image]
        )
        yield from _compare_rows(f"rows of image {image}", reduction.hidden_KC, vector.float32("out_tokens")[image])
        yield from _compare_rows(f"merged rows of image {image}", reduction.hidden_KC, merged_KC)


def check_packing(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce an image of several views, and compare the order with the views reduced one by one."""
    configured = configure(method, vector)
    kept_VM, packed = vector.tensor("kept_patches"), vector.tensor("packed")
    contextual, num_views = vector.integer("contextual"), len(kept_VM)
    keep = vector.integer("dominant") + contextual
    generator = torch.Generator().manual_seed(0)
    hidden_VSC = torch.randn(num_views, NUM_PATCHES + 1, WIDTH, generator=generator)
    keys_NC = torch.randn(num_views * NUM_PATCHES, WIDTH, generator=generator)
    attention_VN = torch.zeros(num_views, NUM_PATCHES).scatter_(1, kept_VM, 1.0)
    visual = _build_views(hidden_VSC, keys_NC, attention_VN.flatten()[None], width=int(vector["grid_wh"][0]))
    single_views = [
        reduce_image(configured, select_view(visual, view), Rule(BudgetRequest(keep=keep)), num_read=NUM_PATCHES)
        for view in range(num_views)
    ]
    rule = Rule(BudgetRequest(keep=keep * num_views))
    reduction = reduce_image(configured, visual, rule, num_read=len(visual), max_views=num_views)
    view_K, slot_K = packed // 1000, packed % 1000
    indices_VK = torch.stack([_pad_indices(kept_M, contextual) for kept_M in kept_VM])
    offsets_VK = torch.where(indices_VK < 0, 0, torch.arange(num_views)[:, None] * NUM_PATCHES)
    yield from differences("tokens", reduction.indices_K, (indices_VK + offsets_VK)[view_K, slot_K])
    rows = [reduced.hidden_KC for reduced in single_views if reduced.hidden_KC is not None]
    if len(rows) < num_views:
        yield "rows: none in tower space (hidden_KC)"
        return
    yield from _compare_rows("rows", reduction.hidden_KC, torch.stack(rows)[view_K, slot_K])


def _build_views(hidden_VSC: Tensor, keys_Nd: Tensor, attention_HN: Tensor, *, width: int) -> VisualTokens:
    """Return the tokens of views that are stored with the CLS row first."""
    return square_views(
        len(hidden_VSC),
        width,
        0,
        hidden_NC=hidden_VSC[:, 1:].flatten(0, 1),
        cls_hidden_VC=hidden_VSC[:, 0],
        cls_attention={LAYER: attention_HN},
        keys_Nd=keys_Nd,
    )


def _pad_indices(kept_M: Tensor, contextual: int) -> Tensor:
    """Return each row's token index: -1 for CLS, the kept patches, -1 for the merged rows."""
    return torch.nn.functional.pad(kept_M, (1, contextual), value=-1)


def _merge_pairs(hidden_SC: Tensor, targets_K: Tensor, pairs_M2: Tensor) -> Tensor:
    """Return the targets merged by the stored (patch, target) pairs: each target plus the mean of its patches."""
    patches_NC = hidden_SC[1:]
    members = [pairs_M2[pairs_M2[:, 1] == target, 0] for target in targets_K]
    means = [patches_NC[ids].mean(0) if len(ids) else torch.zeros_like(patches_NC[0]) for ids in members]
    return patches_NC[targets_K] + torch.stack(means)


def _compare_rows(what: str, got: Tensor | None, expected: Tensor) -> Iterator[str]:
    """Yield a sentence if the last `len(expected)` rows differ from the expected ones by more than the tolerance."""
    if got is None or len(got) < len(expected):
        yield f"{what}: {0 if got is None else len(got)} in tower space (hidden_KC) instead of {len(expected)}"
        return
    furthest = float((got[-len(expected) :] - expected).abs().max())
    if not furthest <= TOLERANCE:
        yield f"{what}: off by {furthest:.2g}; {TOLERANCE:g} is allowed"
