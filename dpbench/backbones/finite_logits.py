"""Notice logits that are not numbers while decoding, without waiting for the device at every token.

A float16 overflow in the decoder makes logits NaN; greedy decoding then returns whatever token comes first, and the
answer looks like one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Passes logits on unchanged and remembers for each row of the batch whether all of them were finite."""

    def __init__(self) -> None:
        self._is_finite_B: Tensor | None = None

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at one step's logits, (B, vocabulary)."""
        # A sum is NaN or infinite if any of its terms is, and costs one read of the logits.
        is_finite_B = scores.sum(-1, dtype=torch.float32).isfinite()
        self._is_finite_B = is_finite_B if self._is_finite_B is None else self._is_finite_B & is_finite_B
        return scores

    def rows(self, count: int) -> list[bool]:
        """Return for each row whether all its logits were finite; waits for the device."""
        return [True] * count if self._is_finite_B is None else self._is_finite_B.tolist()
