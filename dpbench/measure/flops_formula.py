"""FLOPs of tower, projector, decoder and LM head from a configuration and lengths; no model runs.

2 per multiply-add of matrix products, convolutions and attention. Included: the patch embedding; all layers of the
tower, even those after the select layer, because transformers runs them; the projector or patch merger over every
token; all decoder layers over the positions each one reads; the LM head. Causal attention counts all L * L pairs, as
the papers do and as plain matrix products run it. Not included: norms, activations, softmax, rotations, embedding
look-ups, and the interpolation of position codes.

Grids are rows and columns of visual tokens of one view. Configurations are transformers' own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from dpbench.errors import UnsupportedError

CLIP_FAMILIES = ("llava", "llava_next")
QWEN = "qwen2_5_vl"
FREE_SIGNALS = frozenset({"cls_hidden_VC", "keys_Nd"})
"""Signals that the tower computes anyway."""
CLS_ROW = re.compile(r"cls_attention(?:\[(\d+)\])?")
"""A row of CLS attention: of the select layer, or of the layer whose number is given."""


def linear(rows: int, fan_in: int, fan_out: int) -> int:
    """Return the FLOPs of a linear map."""
    return 2 * rows * fan_in * fan_out


def attention(queries: int, keys: int, width: int) -> int:
    """Return the FLOPs of scores and weighted sum over all heads; `width` is that of all heads together."""
    return 2 * linear(queries, width, keys)


def tower(config: Any, grid_hw: tuple[int, int], num_views: int = 1) -> int:
    """Return the FLOPs of the vision tower over one image.

    Raises:
        UnsupportedError: no closed form is known for this family.
    """
    vision = config.vision_config
    return _qwen_tower(vision, grid_hw) if _is_qwen(config) else num_views * _clip_view(vision, grid_hw)


def projector(config: Any, num_tokens: int) -> int:
    """Return the FLOPs of projecting visual tokens into the LLM's space."""
    vision, width = config.vision_config, config.text_config.hidden_size
    if _is_qwen(config):
        merged = vision.hidden_size * vision.spatial_merge_size**2
        return linear(num_tokens, merged, merged) + linear(num_tokens, merged, width)
    return linear(num_tokens, vision.hidden_size, width) + linear(num_tokens, width, width)


def signals(config: Any, needs: frozenset[str], grid_hw: tuple[int, int], num_views: int = 1) -> int:
    """Return the FLOPs of the attention rows that a method reads and the tower itself never materializes.

    Args:
        config: of the model.
        needs: the fields of `VisualTokens` that the method requests.
        grid_hw: rows and columns of visual tokens of one view.
        num_views: number of views.

    Raises:
        UnsupportedError: no closed form is known for one of the signals.
    """
    vision, count = config.vision_config, grid_hw[0] * grid_hw[1]
    total = 0
    for name in sorted(needs - FREE_SIGNALS):
        if CLS_ROW.fullmatch(name) and not _is_qwen(config):
            total += num_views * linear(1, vision.hidden_size, count + 1)
        elif name == "received_attention_N" and _is_qwen(config):
            patches = count * vision.spatial_merge_size**2
            total += linear(patches, vision.hidden_size, patches)
        else:
            raise UnsupportedError(f"there is no closed form for {name!r} of {config.model_type}")
    return total


def decoder(config: Any, lengths: Sequence[int]) -> int:
    """Return the FLOPs of the decoder's layers.

    Args:
        config: of the model.
        lengths: number of positions that each layer reads, visual and text.
    """
    return sum(_decoder_layer(config.text_config, length) for length in lengths)


def lm_head(config: Any, positions: int = 1) -> int:
    """Return the FLOPs of the LM head, by default at the last position only, as in a prefill."""
    text = config.text_config
    return linear(positions, text.hidden_size, text.vocab_size)


def _is_qwen(config: Any) -> bool:
    if config.model_type not in (*CLIP_FAMILIES, QWEN):
        raise UnsupportedError(
            f"there is no closed form for {config.model_type!r}; known: {', '.join((*CLIP_FAMILIES, QWEN))}"
        )
    return bool(config.model_type == QWEN)


def _clip_view(vision: Any, grid_hw: tuple[int, int]) -> int:
    """Return one view's FLOPs, including the CLS token's."""
    patches, width = grid_hw[0] * grid_hw[1], vision.hidden_size
    length = patches + 1
    embedding = linear(patches, vision.num_channels * vision.patch_size**2, width)
    mlp = 2 * linear(length, width, vision.intermediate_size)
    layer = linear(length, width, 4 * width) + attention(length, length, width) + mlp
    return int(embedding + vision.num_hidden_layers * layer)


def _qwen_tower(vision: Any, grid_hw: tuple[int, int]) -> int:
    """Return one image's FLOPs; most layers attend inside windows, which the right and lower edges cut off."""
    merge, width = vision.spatial_merge_size, vision.hidden_size
    patches, side = grid_hw[0] * grid_hw[1] * merge**2, vision.window_size // vision.patch_size
    rows, columns = (_window_sides(size * merge, side) for size in grid_hw)
    windows = sum(attention(h * w, h * w, width) for h, w in product(rows, columns))
    full, num_full = attention(patches, patches, width), len(vision.fullatt_block_indexes)
    volume = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    layer = linear(patches, width, 4 * width) + 3 * linear(patches, width, vision.intermediate_size)
    attended = num_full * full + (vision.depth - num_full) * windows
    return int(linear(patches, volume, width) + vision.depth * layer + attended)


def _window_sides(size: int, longest: int) -> list[int]:
    """Return the lengths of the windows along a side; the last one may be shorter."""
    return [min(longest, size - start) for start in range(0, size, longest)]


def _decoder_layer(text: Any, length: int) -> int:
    """Return one layer's FLOPs: grouped-query attention and a gated MLP."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width, key_width = head * text.num_attention_heads, head * text.num_key_value_heads
    projections = linear(length, text.hidden_size, 2 * width + 2 * key_width)
    mlp = 3 * linear(length, text.hidden_size, text.intermediate_size)
    return projections + attention(length, length, width) + mlp
