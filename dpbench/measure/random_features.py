"""Noise of the real shapes on the CPU, in place of what a method reads before and inside the LLM: no weights needed.

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
    """Return the number of views of an image, and the rows and columns of visual tokens in each view."""
    vision = backbone.model.config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        _, height, width = pixels.size
        return 1, (height // vision.spatial_merge_size, width // vision.spatial_merge_size)
    height, width = (side // vision.patch_size for side in pixels.values.shape[-2:])
    return len(pixels.values) if pixels.values.ndim == 4 else 1, (height, width)


def features(backbone: Backbone, pixels: Pixels, needs: frozenset[str], *, seed: int = 0) -> Features:
    """Return features as `backbone.encode` does, with random values.

    Args:
        backbone: gives the widths, and the slots that AnyRes assigns to tokens.
        pixels: the image.
        needs: optional fields to fill.
        seed: of the noise.
    """
    config = backbone.model.config
    num_views, (rows, columns) = layout(backbone, pixels)
    num, width = num_views * rows * columns, _tower_width(config.vision_config)
    tiled = isinstance(backbone, LlavaNext)
    slot_N = backbone.slots(pixels.size) if isinstance(backbone, LlavaNext) and pixels.size else torch.arange(num)
    noise = _Noise(backbone.dtype, seed)
    return Features(
        embeds_ND=noise(num, config.text_config.hidden_size),
        hidden_NC=noise(num, width),
        view_N=torch.arange(num_views).repeat_interleave(rows * columns),
        row_N=torch.arange(rows).repeat_interleave(columns).repeat(num_views),
        col_N=torch.arange(columns).repeat(num_views * rows),
        read_N=slot_N >= 0,
        slot_N=slot_N,
        newline_D=noise(config.text_config.hidden_size) if tiled else None,
        num_newlines=pixels.rows - int((slot_N >= 0).sum()) if tiled else 0,
        **_signals(config, needs, num_views, num, noise),
    )


def _signals(config: Any, needs: frozenset[str], num_views: int, num: int, noise: _Noise) -> dict[str, Any]:
    vision = config.vision_config
    signals: dict[str, Any] = {}
    if "cls_hidden_VC" in needs:
        signals["cls_hidden_VC"] = noise(num_views, vision.hidden_size)
    if "keys_Nd" in needs:
        signals["keys_Nd"] = noise(num, vision.hidden_size // vision.num_attention_heads)
    if "received_attention_N" in needs:
        signals["received_attention_N"] = noise(num).float().softmax(0)
    select_layer = getattr(vision, "num_hidden_layers", 0) + getattr(config, "vision_feature_layer", 0)
    for row in filter(None, map(CLS_ROW.fullmatch, sorted(needs))):
        attention = noise(vision.num_attention_heads, num_views, num // num_views).float().softmax(-1)
        layer = select_layer if row[1] is None else int(row[1])
        signals.setdefault("cls_attention", {})[layer] = attention.flatten(1)
    return signals


def _tower_width(vision: Any) -> int:
    """Return the width of a visual token before the projector: of one patch, or of those merged into it."""
    return int(vision.hidden_size * getattr(vision, "spatial_merge_size", 1) ** 2)


def layer_view(backbone: Backbone, cut: Cut, stage: int, prompt: PromptLayout, num_visual: int) -> DecoderView:
    """Return the view of a cut that the method reads.

    The probe's projections return noise. If the method has to run them itself, their FLOPs count at full size.

    Args:
        backbone: gives the decoder's widths.
        cut: the cut.
        stage: index of the cut among the method's cuts.
        prompt: the prompt that the first layer reads.
        num_visual: number of visual tokens left at the cut.
    """
    text, noise = backbone.model.config.text_config, _Noise(backbone.dtype, prompt.seed)
    length, heads, key_heads = prompt.length(num_visual), text.num_attention_heads, text.num_key_value_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    attention = SimpleNamespace(
        q_proj=_NoiseProjection(heads * width, noise),
        k_proj=_NoiseProjection(key_heads * width, noise),
        num_key_value_groups=heads // key_heads,
        scaling=width**-0.5,
        head_dim=width,
    )
    layer = SimpleNamespace(self_attn=attention, input_layernorm=nn.Identity())
    embeds_LD = noise(prompt.length(prompt.num_visual), text.hidden_size)
    visual_index_N, text_index = prompt.places(num_visual)
    ran_already = cut.probe < cut.layer
    return DecoderView(
        cut=cut,
        stage=stage,
        hidden_LD=noise(length, text.hidden_size),
        visual_index_N=visual_index_N,
        text_index=text_index,
        embeds_LD=embeds_LD[:length],
        prompt=DecoderInput(embeds_LD, *prompt.places(prompt.num_visual)),
        decoder=SimpleNamespace(layers={cut.probe: layer}, norm=nn.Identity()),
        angles=(noise(length, width), noise(length, width)),
        kept=Projected(noise(length, heads * width), noise(length, key_heads * width)) if ran_already else None,
    )


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Sizes of a noise prompt: text positions before the visual tokens, visual tokens, text positions after."""

    before: int
    num_visual: int
    after: int
    seed: int = 0

    def length(self, num_visual: int) -> int:
        """Return the length of the prompt when `num_visual` visual tokens are left."""
        return self.before + num_visual + self.after

    def places(self, num_visual: int) -> tuple[Tensor, Tensor]:
        """Return the positions of `num_visual` visual tokens and of the text, int64, rising."""
        positions = torch.arange(self.length(num_visual))
        stop = self.before + num_visual
        return positions[self.before : stop], torch.cat([positions[: self.before], positions[stop:]])


class _Noise:
    """Draws standard normal numbers; a seed gives the same ones in every process."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class _NoiseProjection:
    """A projection that returns noise. Its product runs on the meta device, where counting it costs no time."""

    fan_out: int
    noise: _Noise
    weight = torch.empty(0)
    """Tells the engine which device the input belongs on."""

    def __call__(self, states: Tensor) -> Tensor:
        product = states.to("meta") @ torch.empty(states.shape[-1], self.fan_out, dtype=states.dtype, device="meta")
        return self.noise(*product.shape)
