"""Vectors of a decision before the LLM: the rows that a method makes of an image's visual tokens, and their order.

Shape letters: B images or views, N visual tokens, K rows kept, D the width of the rows, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decision import Rule, reduce_image
from dpbench.errors import ConfigError, MissingError
from dpbench.method import Method, VisualTokens

HAS_CLS = {"llava": True, "qwen": False}
"""Whether a variant's tower has a CLS token."""
SIGNALS = ("cls_attention", "cls_hidden_VC", "received_attention_N", "keys_Nd")
"""Optional fields of VisualTokens that a method may need."""
LAYER = 0
"""The select layer; vectors do not state its number, and any number will do."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image, and upstream's rows for it.

    Attributes:
        visual: what the method reads; hidden states or embeddings that the vector does not hold are NaN.
        num_views: number of its views.
        keep: budget over all views.
        indices_K: which token each row is, -1 for a row that is not a single token.
        rows_KD: upstream's rows, to be matched bit for bit.
    """

    visual: VisualTokens
    num_views: int
    keep: int
    indices_K: Tensor
    rows_KD: Tensor


def check_tokens(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce each image, and compare order and content of its rows."""
    configured = configure(method, vector)
    for number, image in enumerate(_load_images(vector)):
        configured.needs(frozenset(name for name in SIGNALS if _is_present(getattr(image.visual, name))))
        rule, num_read = Rule(BudgetRequest(keep=image.keep)), len(image.visual)
        reduction = reduce_image(configured, image.visual, rule, num_read=num_read, max_views=image.num_views)
        yield from differences(f"tokens of image {number}", reduction.indices_K, image.indices_K)
        rows = reduction.hidden_KC if reduction.embeds_KD is None else reduction.embeds_KD
        if rows is not None and not torch.equal(rows, image.rows_KD):
            yield f"rows of image {number}: not bit-identical to the vector's"


def _is_present(signal: Tensor | Mapping[int, Tensor] | None) -> bool:
    return signal is not None and len(signal) > 0


def _load_images(vector: Vector) -> Iterator[Image]:
    variant = str(vector["variant"])
    if variant not in HAS_CLS:
        raise ConfigError(f"no vector of variant {variant!r} can be run; known: {', '.join(HAS_CLS)}")
    if "features" in vector:
        return _load_projected(vector, cls=HAS_CLS[variant])
    if "hidden" in vector:
        return _load_tower(vector) if HAS_CLS[variant] else iter([_load_without_attention(vector)])
    raise MissingError("the vector has neither 'features' (behind the projector) nor 'hidden' (of the tower)")


def _load_projected(vector: Vector, *, cls: bool) -> Iterator[Image]:
    """Return images whose projected tokens and attention are stored, with the type upstream computed in."""
    features_BND = vector.tensor("features").to(getattr(torch, str(vector["compute_dtype"])))
    stored = zip(features_BND, vector.tensor("attn"), vector.tensor("kept_idx"), strict=True)
    for embeds_ND, attention_N, kept_K in stored:
        signals: dict[str, Any] = {"received_attention_N": None if cls else attention_N}
        signals |= {"cls_attention": {LAYER: attention_N[None]} if cls else {}}
        rows = embeds_ND[kept_K.clamp(min=0)].masked_fill((kept_K < 0)[:, None], 0.0)
        yield Image(_build_tokens(vector, 1, embeds_ND=embeds_ND, **signals), 1, vector.integer("keep"), kept_K, rows)


def _load_tower(vector: Vector) -> Iterator[Image]:
    """Return images whose tower output is stored, CLS first: the views of one image, or images of one view."""
    hidden_BSC, attention_BHN = vector.tensor("hidden"), vector.tensor("cls_attn")
    ids_BK, keep = vector.tensor("kept_ids"), vector.integer("need_token_num")
    if "grid_wh" not in vector:
        for hidden_SC, heads_HN, id_K in zip(hidden_BSC, attention_BHN, ids_BK, strict=True):
            yield _build_views(vector, hidden_SC[None], heads_HN[None], keep, (torch.zeros_like(id_K), id_K))
        return
    view_K = torch.cat([torch.zeros_like(ids_BK[0]), vector.tensor("next_order_crop") + 1])
    id_K = torch.cat([ids_BK[0], vector.tensor("next_order_id")])
    yield _build_views(vector, hidden_BSC, attention_BHN, keep * len(hidden_BSC), (view_K, id_K))


def _build_views(
    vector: Vector, hidden_VSC: Tensor, attention_VHN: Tensor, keep: int, rows: tuple[Tensor, Tensor]
) -> Image:
    """Return one image; `rows` are the view and the id of upstream's rows, and the CLS row has id 0."""
    (view_K, id_K), num_views, num = rows, len(hidden_VSC), hidden_VSC.shape[1] - 1
    visual = _build_tokens(
        vector,
        num_views,
        hidden_NC=hidden_VSC[:, 1:].flatten(0, 1),
        cls_hidden_VC=hidden_VSC[:, 0],
        cls_attention={LAYER: attention_VHN.transpose(0, 1).flatten(1)},
    )
    indices_K = torch.where(id_K == 0, -1, view_K * num + id_K - 1)
    return Image(visual, num_views, keep, indices_K, hidden_VSC[view_K, id_K])


def _load_without_attention(vector: Vector) -> Image:
    """Return the image whose tokens are stored without attention, as embeddings that the LLM reads."""
    embeds_ND, kept_K = vector.tensor("hidden"), vector.tensor("kept_ids")
    visual = _build_tokens(vector, 1, embeds_ND=embeds_ND)
    return Image(visual, 1, vector.integer("need_effective"), kept_K, embeds_ND[kept_K])


def _build_tokens(vector: Vector, num_views: int, **stored: Any) -> VisualTokens:
    """Return the vector's tokens, with a generator from its seed."""
    width = int(vector["grid_wh"][0]) if num_views > 1 else 1
    return square_views(num_views, width, vector.integer("seed"), **stored)


def square_views(num_views: int, width: int, seed: int, **stored: Any) -> VisualTokens:
    """Return tokens of square views: a base view, and tiles on one canvas without padding.

    Args:
        num_views: number of views, the base included.
        width: tiles in a row of the canvas.
        seed: of the generator.
        stored: fields of VisualTokens, view after view; hidden states or embeddings not among them are NaN.
    """
    total = len(stored["embeds_ND" if "embeds_ND" in stored else "hidden_NC"])
    index, num = torch.arange(total), total // num_views
    side = isqrt(num)
    view_N, row_N, col_N, slot_N = index // num, index % num // side, index % num % side, index
    if num_views > 1:
        down, across = (view_N - 1) // width * side + row_N, (view_N - 1) % width * side + col_N
        slot_N = torch.where(view_N == 0, index, num + down * width * side + across)
    unknown = torch.full((total, 1), torch.nan)
    defaults = {"view_N": view_N, "row_N": row_N, "col_N": col_N, "slot_N": slot_N}
    defaults |= {"embeds_ND": unknown, "hidden_NC": unknown, "read_N": torch.ones(total, dtype=torch.bool)}
    return VisualTokens(**defaults | stored, generator=torch.Generator().manual_seed(seed))
