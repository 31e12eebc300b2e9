"""Notice what is NaN or infinite: an image's features, and logits without waiting for the device at every token.

A float16 overflow in the decoder makes logits NaN; greedy decoding then returns whatever token comes first, and the
answer looks like one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

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


def are_finite(images: Sequence[Any]) -> list[bool]:
    """Return for each image's features whether all tensors in them are finite; waits for the device once."""
    return torch.stack([_sum(image).isfinite() for image in images]).tolist() if images else []


def _sum(features: Any) -> Tensor:
    """Return the sum of everything in one image's features, which is not finite if anything in them is not."""
    values = [getattr(features, declared.name) for declared in fields(features)]
    tensors = [part for value in values for part in (value.values() if isinstance(value, Mapping) else [value])]
    return torch.stack(
        [part.sum(dtype=torch.float32) for part in tensors if isinstance(part, Tensor) and part.is_floating_point()]
    ).sum()


def explain_not_finite(what: str, dtype: torch.dtype) -> str:
    """Return why a sample has no answer.

    Args:
        what: is not finite, with its verb: "the logits are".
        dtype: of the weights.
    """
    if dtype == torch.float16:
        return f"{what} NaN or infinite: float16 overflows in this model; give --dtype bfloat16 or float32"
    return f"{what} NaN or infinite: so are the weights, or what a method makes of the image"
