"""Vectors of one decision inside the LLM: what a method keeps at a cut, given the weights of the layer that ranks.

Shape letters: L remaining positions, N visual ones among them, D the LLM's width, H query heads, G key heads, d one
head's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpbench.conformance.vectors.llama import scoring_layers
from dpbench.conformance.vectors.vector import Vector, configure, differences, distances
from dpbench.engine.decoder_view import DecoderView, Projected
from dpbench.engine.pruned_prompt import validate_cuts
from dpbench.method import LAST, Budget, Cut, DecoderInput, Method

TOLERANCE = {"float32": 1e-5, "float16": 1e-2}
"""How far queries, keys and attention may be from the stored ones, by the type that upstream ran in."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample at the cut of a vector.

    Attributes:
        cut: the method's cut.
        stage: its number among the method's cuts.
        length: L.
        start: position of the first visual token; the others follow it directly.
        num_visual: N.
        suffix: what the names of this sample's arrays end in.
    """

    cut: Cut
    stage: int
    length: int
    start: int
    num_visual: int
    suffix: str = ""

    @property
    def visual_index_N(self) -> Tensor:
        """Return the positions of the visual tokens."""
        return torch.arange(self.start, self.start + self.num_visual)

    @property
    def text_index(self) -> Tensor:
        """Return the positions of the text."""
        return torch.cat([torch.arange(self.start), torch.arange(self.start + self.num_visual, self.length)])

    def fields(self, hidden_LD: Tensor | None, decoder: Any, **overrides: Any) -> dict[str, Any]:
        """Return the fields of a view; hidden states that a vector does not hold are NaN."""
        unknown = torch.full((self.length, 1), torch.nan)
        return {
            "cut": self.cut,
            "stage": self.stage,
            "hidden_LD": unknown if hidden_LD is None else hidden_LD,
            "visual_index_N": self.visual_index_N,
            "text_index": self.text_index,
            "embeds_LD": unknown,
            "prompt": DecoderInput(unknown, self.visual_index_N, self.text_index),
            "decoder": decoder,
            "angles": (torch.ones(self.length, 1), torch.zeros(self.length, 1)),  # cos 1, sin 0: RoPE changes nothing
            "kept": None,
            **overrides,
        }


@dataclass(frozen=True)
class StoredView(DecoderView):
    """A view that holds nothing but the attention of the last position.

    Attributes:
        row_HL: that attention.
    """

    row_HL: Tensor

    def attention(self, rows: slice | Tensor = LAST) -> Tensor:
        """Return the stored row, (H, 1, L)."""
        if rows is not LAST:
            raise ValueError("the vector holds the attention of the last position only")
        return self.row_HL[:, None]


def check_row(method: Method, vector: Vector) -> Iterator[str]:
    """Select by a stored attention row of the layer before the cut."""
    configured, sample = _configure_behind(method, vector, vector["attn_row"].shape[1])
    yield from _compare_selection(configured, vector, sample, _stored_view(vector, sample))


def check_layer(method: Method, vector: Vector) -> Iterator[str]:
    """Select by the layer before the cut: from its attention row, its queries and keys, and what enters it.

    As in a run, that layer has already projected its input when the method decides; its output is not stored.
    """
    hidden_LD = vector.float32("hidden")
    configured, sample = _configure_behind(method, vector, len(hidden_LD))
    decoder = scoring_layers(vector, 1)
    ranking = decoder.layers[0]
    normed = ranking.input_layernorm(hidden_LD)
    kept = Projected(ranking.self_attn.q_proj(normed), ranking.self_attn.k_proj(normed))
    angles = _angles(decoder, hidden_LD, vector.tensor("position_ids"))
    view = DecoderView(**sample.fields(None, decoder, kept=kept, angles=angles))
    yield from _compare_all_entries(configured, vector, sample, view)


def check_stage(method: Method, vector: Vector) -> Iterator[str]:
    """Select by the layer behind the cut, from its attention row, its queries and keys, and what enters it."""
    hidden_LD = vector.float32("hidden")
    num, start = vector.integer("n_visual_original"), vector.integer("image_start")
    configured, sample = _configure_before(method, vector, (num, len(hidden_LD), start))
    current = vector.tensor("n_visual_current")[None]
    yield from differences("visual tokens before the cut", torch.tensor([sample.num_visual]), current)
    decoder = scoring_layers(vector, sample.cut.probe + 1)
    angles = _angles(decoder, hidden_LD, vector.tensor("position_ids"))
    view = DecoderView(**sample.fields(hidden_LD, decoder, angles=angles))
    yield from _compare_all_entries(configured, vector, sample, view)
    yield from _compare_positions(configured, vector, sample, vector.tensor("position_ids"))


def check_batch(method: Method, vector: Vector) -> Iterator[str]:
    """Select for each sample of a right-padded batch; the engine sees samples without their padding."""
    for number, mask_L in enumerate(vector.tensor("attention_mask").bool()):
        hidden_LD = vector.float32("hidden")[number][mask_L]
        num, start = (int(vector[name][number]) for name in ("n_visual_original", "image_start"))
        yield from differences("length", torch.tensor([len(hidden_LD)]), vector.tensor("lengths")[number][None])
        configured, sample = _configure_before(method, vector, (num, len(hidden_LD), start), f"_{number}")
        decoder, positions = scoring_layers(vector, sample.cut.probe + 1), torch.arange(len(hidden_LD))
        view = DecoderView(**sample.fields(hidden_LD, decoder, angles=_angles(decoder, hidden_LD, positions)))
        yield from _compare_selection(configured, vector, sample, view)
        yield from _compare_positions(configured, vector, sample, positions)


def _configure_behind(method: Method, vector: Vector, length: int) -> tuple[Method, Sample]:
    """Configure a method to cut behind the vector's layer, which is the decoder's first."""
    configured, num = configure(method, vector, layer=1), vector.integer("n_visual")
    (cut,) = validate_cuts(configured, num, 2, Budget(num))
    if cut.probe != 0:
        raise ValueError(f"{type(configured).__name__} ranks at layer {cut.probe}, the vector holds the one before it")
    return configured, Sample(cut, 0, length, vector.integer("image_start"), num)


def _configure_before(
    method: Method, vector: Vector, sizes: tuple[int, int, int], suffix: str = ""
) -> tuple[Method, Sample]:
    """Configure a method to cut before each layer from the second on; the vector's layer follows its stage's cut.

    Args:
        method: the method to configure.
        vector: states the stages' ratios.
        sizes: visual tokens of the whole prompt, remaining positions, and the position of the first visual token.
        suffix: what the names of this sample's arrays end in.
    """
    num, length, start = sizes
    stage, num_stages = vector.integer("stage"), len(vector["ratios"])
    configured = configure(method, vector, layers=tuple(range(1, num_stages + 1)))
    cuts = validate_cuts(configured, num, num_stages + 1, Budget(num))
    if cuts[stage].probe != cuts[stage].layer:
        raise ValueError(
            f"{type(configured).__name__} does not rank by the layer behind the cut, the one with stored weights"
        )
    return configured, Sample(cuts[stage], stage, length, start, cuts[stage - 1].keep if stage else num, suffix)


def _angles(decoder: Any, hidden_LD: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = decoder.rotary_emb(hidden_LD[None], positions_L[None])
    return cos[0], sin[0]


def _stored_view(vector: Vector, sample: Sample) -> StoredView:
    return StoredView(**sample.fields(None, None), row_HL=vector.float32("attn_row"))


def _projected_view(vector: Vector, sample: Sample, decoder: Any) -> DecoderView:
    """Return a view of the stored queries and keys, which have had RoPE; all queries but the last are NaN."""
    last_Hd, keys_GLd = vector.float32("q_rope_last"), vector.float32("k_rope")
    queries = torch.full((sample.length, last_Hd.numel()), torch.nan)
    queries[-1] = last_Hd.flatten()
    kept = Projected(queries, keys_GLd.transpose(0, 1).flatten(1))
    return DecoderView(**sample.fields(None, decoder, kept=kept))


def _compare_all_entries(method: Method, vector: Vector, sample: Sample, view: DecoderView) -> Iterator[str]:
    """Select from the stored attention, from the stored queries and keys, and from the layer's input."""
    tolerance, groups = TOLERANCE[str(vector["dtype"])], len(view.queries_HLd) // len(vector["k_rope"])
    expected_keys = vector.float32("k_rope").repeat_interleave(groups, 0)
    yield from distances("queries", view.queries_HLd[:, -1], vector.float32("q_rope_last"), tolerance)
    yield from distances("keys", view.keys_HLd, expected_keys, tolerance)
    yield from distances("attention", view.attention()[:, 0], vector.float32("attn_row"), tolerance)
    for entry in (_stored_view(vector, sample), _projected_view(vector, sample, view.decoder), view):
        yield from _compare_selection(method, vector, sample, entry)


def _compare_selection(method: Method, vector: Vector, sample: Sample, view: DecoderView) -> Iterator[str]:
    indices = method.select(view).indices_K
    positions = torch.cat([sample.text_index, sample.visual_index_N[indices]]).sort().values
    yield from differences("visual tokens kept", indices, vector.tensor(f"keep_visual{sample.suffix}"))
    yield from differences("positions kept", positions, vector.tensor(f"keep_positions{sample.suffix}"))


def _compare_positions(method: Method, vector: Vector, sample: Sample, positions_L: Tensor) -> Iterator[str]:
    expected = vector.tensor(f"new_position_ids{sample.suffix}")
    kept = positions_L[vector.tensor(f"keep_positions{sample.suffix}")]
    yield from differences("position ids", torch.arange(len(kept)) if method.positions == "compact" else kept, expected)
