"""What a method sees of one sample at a cut: `dpbench.method.LayerView`, computed only as far as the method asks.

Queries and keys are those of the probe layer. If it already ran, its recorded projections are used; otherwise they are
computed from the hidden states entering it. Only the requested attention rows are computed.

Shape letters: L positions of the sample still there, N visual ones among them, R query rows, D the LLM's width, H query
heads, G key heads, d one head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpbench.method import LAST, Cut, DecoderInput


@dataclass(frozen=True, slots=True)
class Projected:
    """A layer's query and key projections before RoPE, (L, H*d) and (L, G*d)."""

    queries: Tensor
    keys: Tensor


@dataclass(frozen=True)
class DecoderView:
    """One sample at a cut, without padding.

    Attributes:
        cut: the cut being decided.
        stage: which cut of the method it is, from 0.
        hidden_LD: hidden states entering layer `cut.layer`.
        visual_index_N: int64, positions of the visual tokens still there, rising.
        text_index: int64, positions of the text, rising.
        embeds_LD: the decoder's input embeddings at the positions still there.
        prompt: the whole prompt.
    """

    cut: Cut
    stage: int
    hidden_LD: Tensor
    visual_index_N: Tensor
    text_index: Tensor
    embeds_LD: Tensor
    prompt: DecoderInput
    decoder: Any
    angles: tuple[Tensor, Tensor]
    """Cosines and sines of the positions, (L, d) each."""
    kept: Projected | None
    """The probe's projections where it ran already."""

    @cached_property
    def visual_L(self) -> Tensor:
        """Return which positions are visual, bool."""
        flags = torch.zeros(len(self.hidden_LD), dtype=torch.bool, device=self.hidden_LD.device)
        return flags.index_fill(0, self.visual_index_N, True)

    @cached_property
    def queries_HLd(self) -> Tensor:
        """Return the probe's queries of every position, after RoPE."""
        return self._queries(slice(None))

    @cached_property
    def keys_HLd(self) -> Tensor:
        """Return the probe's keys after RoPE, one per query head (repeated where heads share keys)."""
        keys: Tensor = self._rotated(self._project("k_proj", slice(None)), slice(None))
        repeated: Tensor = keys.repeat_interleave(self._attention.num_key_value_groups, 0)
        return repeated

    def attention(self, rows: slice | Tensor = LAST) -> Tensor:
        """Return (H, R, L) float32: causal softmax over the positions still there, for the query rows given."""
        scale: float = self._attention.scaling
        scores = self._queries(rows).float() @ self.keys_HLd.float().transpose(-1, -2) * scale
        positions = torch.arange(len(self.hidden_LD), device=scores.device)
        return scores.masked_fill(positions[None] > positions[rows][:, None], float("-inf")).softmax(-1)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the decoder's last norm."""
        return self.decoder.norm(hidden)  # type: ignore[no-any-return]

    @property
    def _layer(self) -> Any:
        return self.decoder.layers[self.cut.probe]

    @property
    def _attention(self) -> Any:
        return self._layer.self_attn

    def _queries(self, rows: slice | Tensor) -> Tensor:
        return self._rotated(self._project("q_proj", rows), rows)

    def _project(self, name: str, rows: slice | Tensor) -> Tensor:
        """Return (R, heads, d) before RoPE."""
        # the hidden states entering a probe that already ran are gone; its projections were recorded instead
        if self.kept is not None:
            flat: Tensor = (self.kept.queries if name == "q_proj" else self.kept.keys)[rows].to(self.hidden_LD.device)
        else:
            projection = getattr(self._attention, name)
            hidden = self._layer.input_layernorm(self.hidden_LD[rows].to(projection.weight.device))
            flat = projection(hidden).to(self.hidden_LD.device)
        width: int = self._attention.head_dim
        return flat.view(len(flat), -1, width)

    def _rotated(self, states: Tensor, rows: slice | Tensor) -> Tensor:
        """Rotate (R, heads, d) by the rows' angles and return (heads, R, d)."""
        cos, sin = (part[rows][:, None] for part in self.angles)
        first, second = states.chunk(2, dim=-1)
        return (states * cos + torch.cat((-second, first), dim=-1) * sin).transpose(0, 1)
