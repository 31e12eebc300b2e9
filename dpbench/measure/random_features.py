"""Noise of the real shapes, on the CPU: what a method reads before and inside the LLM when no weights are there.

Shape letters: V views, N visual tokens of the image, L positions, D the LLM's width, C the tower's width, H heads, G
key heads, d one decoder head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dpbench.backbones.base import Backbone, Features, Pixels
from dpbench.backbones.llava_next import LlavaNext
from dpbench.engine.decoder_view import DecoderView, Projected
from dpbench.measure.flops_formula import CLS_ROW
from dpbench.method import Cut, DecoderInput


def layout(backbone: Backbone, pixels: Pixels) -> tuple[int, tuple[int, int]]:
    """Return into how many views an image was cut, and the rows and columns of visual tokens of each."""
    vision = backbone.model.config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        _, height, width = pixels.size
        return 1, (height // vision.spatial_merge_size, width // vision.spatial_merge_size)
    height, width = (side // vision.patch_size for side in pixels.values.shape[-2:])
    return len(pixels.values) if pixels.values.ndim == 4 else 1, (height, width)


def features(backbone: Backbone, pixels: Pixels, needs: frozenset[str], *, seed: int = 0) -> Features:
    """Return what `backbone.encode` would, its values drawn instead of computed.

    Args:
        backbone: for its widths and for where AnyRes lays tokens.
        pixels: the image.
        needs: which optional fields are wanted.
        seed: of the noise.
    """
    config = backbone.model.config
    num_views, (rows, columns) = layout(backbone, pixels)
    num, width = num_views * rows * columns, _tower_width(config.vision_config)
    tiled = isinstance(backbone, LlavaNext)
    slot_N = backbone.slots(pixels.size) if isinstance(backbone, LlavaNext) and pixels.size else torch.arange(num)
    draw = _Draw(backbone.dtype, seed)
    return Features(
        embeds_ND=draw(num, config.text_config.hidden_size),
        hidden_NC=draw(num, width),
        view_N=torch.arange(num_views).repeat_interleave(rows * columns),
        row_N=torch.arange(rows).repeat_interleave(columns).repeat(num_views),
        col_N=torch.arange(columns).repeat(num_views * rows),
        read_N=slot_N >= 0,
        slot_N=slot_N,
        newline_D=draw(config.text_config.hidden_size) if tiled else None,
        **_signals(config, needs, num_views, num, draw),
    )


def _signals(config: Any, needs: frozenset[str], num_views: int, num: int, draw: _Draw) -> dict[str, Any]:
    vision = config.vision_config
    found: dict[str, Any] = {}
    if "cls_hidden_VC" in needs:
        found["cls_hidden_VC"] = draw(num_views, vision.hidden_size)
    if "keys_Nd" in needs:
        found["keys_Nd"] = draw(num, vision.hidden_size // vision.num_attention_heads)
    if "received_attention_N" in needs:
        found["received_attention_N"] = draw(num).float().softmax(0)
    select_layer = getattr(vision, "num_hidden_layers", 0) + getattr(config, "vision_feature_layer", 0)
    for row in filter(None, map(CLS_ROW.fullmatch, sorted(needs))):
        attention = draw(vision.num_attention_heads, num_views, num // num_views).float().softmax(-1)
        layer = select_layer if row[1] is None else int(row[1])
        found.setdefault("cls_attention", {})[layer] = attention.flatten(1)
    return found


def _tower_width(vision: Any) -> int:
    """Return the width of a visual token before the projector: of one patch, or of those merged into it."""
    return int(vision.hidden_size * getattr(vision, "spatial_merge_size", 1) ** 2)


def layer_view(backbone: Backbone, cut: Cut, stage: int, around: Around, num_visual: int) -> DecoderView:
    """Return a cut as the method sees it.

    The probe's projections answer with noise; where the method has to run them, they are priced at full size.

    Args:
        backbone: for the decoder's widths.
        cut: the cut.
        stage: which cut of the method it is, from 0.
        around: the whole prompt.
        num_visual: visual tokens still there.
    """
    text, draw = backbone.model.config.text_config, _Draw(backbone.dtype, around.seed)
    length, heads, shared = around.length(num_visual), text.num_attention_heads, text.num_key_value_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    attention = SimpleNamespace(
        q_proj=_Priced(heads * width, draw),
        k_proj=_Priced(shared * width, draw),
        num_key_value_groups=heads // shared,
        scaling=width**-0.5,
        head_dim=width,
    )
    layer = SimpleNamespace(self_attn=attention, input_layernorm=nn.Identity())
    embeds_LD = draw(around.length(around.num_visual), text.hidden_size)
    whole, (visual_index_N, text_index) = around.places(around.num_visual), around.places(num_visual)
    ran_already = cut.probe < cut.layer
    return DecoderView(
        cut=cut,
        stage=stage,
        hidden_LD=draw(length, text.hidden_size),
        visual_index_N=visual_index_N,
        text_index=text_index,
        embeds_LD=embeds_LD[:length],
        prompt=DecoderInput(embeds_LD, *whole),
        decoder=SimpleNamespace(layers={cut.probe: layer}, norm=nn.Identity()),
        angles=(draw(length, width), draw(length, width)),
        kept=Projected(draw(length, heads * width), draw(length, shared * width)) if ran_already else None,
    )


@dataclass(frozen=True, slots=True)
class Around:
    """A prompt of noise: text positions before the visual tokens, visual tokens, text positions after, and a seed."""

    before: int
    num_visual: int
    after: int
    seed: int = 0

    def length(self, num_visual: int) -> int:
        """Return the positions left with so many visual tokens."""
        return self.before + num_visual + self.after

    def places(self, num_visual: int) -> tuple[Tensor, Tensor]:
        """Return the positions of so many visual tokens and of the text, int64, rising."""
        positions = torch.arange(self.length(num_visual))
        stop = self.before + num_visual
        return positions[self.before : stop], torch.cat([positions[: self.before], positions[stop:]])


class _Draw:
    """Draws standard normal numbers, the same in every process."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class _Priced:
    """A projection whose product runs on the meta device, where it is counted in no time, and whose answer is noise."""

    fan_out: int
    draw: _Draw
    weight = torch.empty(0)
    """Where the input shall be: on the CPU."""

    def __call__(self, states: Tensor) -> Tensor:
        product = states.to("meta") @ torch.empty(states.shape[-1], self.fan_out, dtype=states.dtype, device="meta")
        return self.draw(*product.shape)
