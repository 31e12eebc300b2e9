"""Vectors of a budget that is split over the views of one image: the kept patches, and their order in the prompt.

Shape letters: V views, H heads, N patches of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor

from dpbench.conformance.vectors.tokens import square_views
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decision import Rule, reduce_image
from dpbench.errors import ConfigError
from dpbench.method import Method, VisualTokens

FIRST, SELECT = 0, 22
"""The tower's layers whose CLS rows are stored."""
SIGNALS = frozenset({"cls_attention", "cls_attention[0]"})
MODELS = ("llava15", "llava_next")


def check_tiles(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce the image, and compare the patches kept in each view and those of them that the LLM reads."""
    model = str(vector["model"])
    if model not in MODELS:
        raise ConfigError(f"no vector of model {model!r} can be run; known: {', '.join(MODELS)}")
    configured = configure(method, vector)
    configured.needs(SIGNALS)
    visual = _build_one_view(vector) if model == MODELS[0] else _build_tiles(vector)
    mask_VN = vector.tensor("mask")
    num_views, read = len(mask_VN), int(visual.read_N.sum())
    indices_K = reduce_image(configured, visual, Rule(), num_read=read, max_views=num_views).indices_K
    yield from differences("patches", indices_K.sort().values, mask_VN.flatten().nonzero()[:, 0])
    if model == MODELS[0]:
        yield from differences("tokens", indices_K, vector.tensor("kept"))
        return
    expected_V = torch.cat([vector.tensor("full_budget")[None], vector.tensor("sub_budgets")])
    yield from differences("budgets", visual.view_N[indices_K].bincount(minlength=num_views), expected_V)
    packed = indices_K[visual.read_N[indices_K]]
    yield from differences("tokens the LLM reads", packed, vector.tensor("packed_source"))
    yield from differences("number of tokens the LLM reads", torch.tensor([len(packed)]), vector.tensor("packed_len"))


def _build_one_view(vector: Vector) -> VisualTokens:
    attention_HN = vector.tensor("cls_attn_select")[0]
    num = attention_HN.shape[1]
    return square_views(1, 1, 0, hidden_NC=torch.full((num, 1), torch.nan), cls_attention={SELECT: attention_HN})


def _build_tiles(vector: Vector) -> VisualTokens:
    """Return the tokens in the official code's order, which swaps rows and columns of the tile grid."""
    rows = {FIRST: "cls_attn_budget", SELECT: "cls_attn_select"}
    attention = {layer: vector.tensor(name).transpose(0, 1).flatten(1) for layer, name in rows.items()}
    num_views, _, num = vector["cls_attn_select"].shape
    side, size_hw = isqrt(num), (int(vector["image_size_hw"][0]), int(vector["image_size_hw"][1]))
    height, width = best_resolution(size_hw, vector.tensor("grid_pinpoints").tolist())
    tile = isqrt(height * width // (num_views - 1))
    swapped_hw = width // tile, height // tile
    unknown = torch.full((num_views * num, 1), torch.nan)
    visual = square_views(num_views, swapped_hw[1], 0, hidden_NC=unknown, cls_attention=attention)
    read_hw = unpadded(size_hw, (swapped_hw[0] * side, swapped_hw[1] * side))
    slot_N = _crop_slots(visual.slot_N, num, swapped_hw[1] * side, read_hw)
    return replace(visual, slot_N=slot_N, read_N=slot_N >= 0)


def best_resolution(size_hw: tuple[int, int], pinpoints: list[list[int]]) -> tuple[int, int]:
    """Return the canvas that holds most of the image's pixels; among equals, the one with the least padding."""

    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / size_hw[0], canvas[1] / size_hw[1])
        pixels = min(int(size_hw[0] * scale) * int(size_hw[1] * scale), size_hw[0] * size_hw[1])
        return pixels, pixels - canvas[0] * canvas[1]

    return max(((height, width) for height, width in pinpoints), key=rank)


def unpadded(size_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[range, range]:
    """Return the rows and columns of a canvas of patches that a centred image of this size covers."""
    (height, width), (down, across) = size_hw, canvas_hw
    if width / height > across / down:
        pad = (down - int(height * (across / width))) // 2
        return range(pad, down - pad), range(across)
    pad = (across - int(width * (down / height))) // 2
    return range(down), range(pad, across - pad)


def _crop_slots(slot_N: Tensor, num: int, across: int, read_hw: tuple[range, range]) -> Tensor:
    """Return the slots of tokens after the canvas behind the base view lost its padding; -1 for padding."""
    rows, columns = read_hw
    row_N, column_N = (slot_N - num) // across - rows.start, (slot_N - num) % across - columns.start
    is_inside_N = (row_N >= 0) & (row_N < len(rows)) & (column_N >= 0) & (column_N < len(columns))
    return torch.where(slot_N < num, slot_N, torch.where(is_inside_N, num + row_N * len(columns) + column_N, -1))
