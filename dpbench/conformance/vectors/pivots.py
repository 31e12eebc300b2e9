"""Vectors of a cut inside the LLM that is decided by stored keys and stored normalised hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.conformance.vectors.decoder import Sample
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decoder_view import DecoderView
from dpbench.engine.pruned_prompt import validate_cuts
from dpbench.method import Budget, Method


@dataclass(frozen=True)
class KeyedView(DecoderView):
    """A view of stored keys whose final norm multiplies each feature by a gain.

    Attributes:
        stored_HLd: the keys after RoPE.
        gain_D: powers of two, so that norm and inverse are exact.
    """

    stored_HLd: Tensor
    gain_D: Tensor

    @property
    def keys_HLd(self) -> Tensor:
        """Return the stored keys."""
        return self.stored_HLd

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return hidden states as the vector stores them."""
        return hidden * self.gain_D


def check_pivots(method: Method, vector: Vector) -> Iterator[str]:
    """Select behind the decoder's first layer, from its keys and from what the second reads."""
    configured, num = configure(method, vector, layer=1), vector.integer("n_visual")
    (cut,) = validate_cuts(configured, num, 2, Budget(num))
    keys_LHd, normed_LD = vector.float32("key_states"), vector.float32("hidden_norm")
    sample = Sample(cut, 0, len(normed_LD), vector.integer("v_start"), num)
    gain_D = 2.0 ** (torch.arange(normed_LD.shape[1]) % 7 - 3)
    signals = {"stored_HLd": keys_LHd.transpose(0, 1), "gain_D": gain_D}
    view = KeyedView(**sample.fields(normed_LD / gain_D, None, **signals))
    kept = sample.visual_index_N[configured.select(view).indices_K]
    yield from differences("positions kept", kept, vector.tensor("kept_sorted"))
    pivots = vector.tensor("pivot_image_idx")
    picked = torch.cat([pivots, vector.tensor("picks").flatten()]).sort().values
    yield from differences("pivots and the tokens they pick", kept, picked)
