"""Vectors of a text-guided cut inside the LLM: which rows of a layer's output are kept, and how the rest is merged.

Shape letters: L positions, N visual rows, T text behind them, H heads, D the LLM's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpbench.conformance.vectors.decoder import Sample
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decoder_view import DecoderView
from dpbench.engine.pruned_prompt import validate_cuts
from dpbench.method import LAST, Budget, DecoderInput, Method

DEPTH = 32
"""Decoder layers that upstream's lists are written for."""
TOLERANCE = 1e-4
"""How far a row may be, absolutely."""


@dataclass(frozen=True)
class RatedView(DecoderView):
    """A view of the stored attention from the text behind the image to the image.

    Attributes:
        rated_HTN: the stored attention.
    """

    rated_HTN: Tensor

    def attention(self, rows: slice | Tensor = LAST) -> Tensor:
        """Return (H, R, L); attention to text is NaN."""
        num_text, num = self.rated_HTN.shape[1:]
        attention_HLL = pad(self.rated_HTN, (0, num_text, num, 0), value=torch.nan)
        return attention_HLL[:, rows]


def check_raters(method: Method, vector: Vector) -> Iterator[str]:
    """Select behind the vector's layer with the official preset; compare the kept tokens and all rows."""
    layer, states_ND = vector.integer("layer"), vector.float32("hidden_visual")
    configured = configure(method, vector, preset="official", layers=(layer,))
    (cut,) = validate_cuts(configured, len(states_ND), DEPTH, Budget(vector.integer("budget")))
    if cut.probe != layer:
        raise ValueError(f"{type(configured).__name__} ranks at layer {cut.probe}, the vector holds layer {layer}")
    visual_ND, text_TD = vector.float32("emb_visual"), vector.float32("emb_text")
    sample = Sample(cut, 0, len(states_ND) + len(text_TD), 0, len(states_ND))
    num, positions = len(visual_ND), torch.arange(len(visual_ND) + len(text_TD))
    prompt = DecoderInput(torch.cat([visual_ND, text_TD]), positions[:num], positions[num:])
    hidden_LD = pad(states_ND, (0, 0, 0, len(text_TD)), value=torch.nan)
    signals = {"prompt": prompt, "rated_HTN": vector.float32("attn_text_to_visual")}
    reduction = configured.select(RatedView(**sample.fields(hidden_LD, None, **signals)))
    kept = vector.tensor("keep_mask").nonzero()[:, 0]
    merged = kept.new_full((vector.integer("n_clusters"),), -1)
    yield from differences("rows", reduction.indices_K, torch.cat([kept, merged]))
    rows_KD = states_ND[reduction.indices_K] if reduction.embeds_KD is None else reduction.embeds_KD
    yield from _compare_rows("rows kept and merged", rows_KD, vector.float32("out_visual"))
    yield from _compare_rows("rows merged", rows_KD[len(kept) :], vector.float32("merged_tokens"))


def _compare_rows(what: str, got: Tensor, expected: Tensor) -> Iterator[str]:
    """Yield a sentence if the rows differ in shape, or by more than the tolerance."""
    if got.shape != expected.shape:
        yield f"{what}: {list(got.shape)} instead of {list(expected.shape)}"
    elif not (furthest := float((got - expected).abs().max())) <= TOLERANCE:
        yield f"{what}: off by {furthest:.2g}; {TOLERANCE:g} is allowed"
