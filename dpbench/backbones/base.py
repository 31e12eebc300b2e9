"""What the engine needs of a backbone: prompts in, visual tokens out, embeddings back in.

Shape letters: L prompt positions, N visual tokens of one image, K rows kept, D the LLM's width, C the tower's width,
B prompts, I images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL.Image import Image
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question as the LLM would read it unpruned: every visual token has its own position.

    Attributes:
        ids_L: int64 token ids on the CPU, image placeholders expanded.
        visual_L: bool, the placeholders.
        pixels: what the tower reads, one entry per image.
        question: the bare question.
    """

    ids_L: Tensor
    visual_L: Tensor
    pixels: tuple[Tensor, ...]
    question: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """One image through tower and projector, with the optional signals that were asked for.

    The fields mean what they mean in `dpbench.method.VisualTokens`.
    """

    embeds_ND: Tensor
    hidden_NC: Tensor
    view_N: Tensor
    row_N: Tensor
    col_N: Tensor
    read_N: Tensor
    cls_hidden_VC: Tensor | None = None
    cls_attention: Mapping[int, Tensor] = field(default_factory=dict)
    keys_Nd: Tensor | None = None


class Backbone(ABC):
    """A vision-language model on transformers, behind the few calls the engine makes."""

    name: str
    model: nn.Module
    decoder: nn.Module
    """The text model: the module whose forward takes `inputs_embeds`, `attention_mask` and `position_ids`."""
    num_layers: int
    num_visual: int | None
    """Visual tokens of every image, or None where it follows the image's size."""
    provides: frozenset[str]
    """Which optional fields of VisualTokens `encode` can fill."""

    @property
    def device(self) -> torch.device:
        """Return where the embeddings live."""
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the weights' floating-point type."""
        return next(self.decoder.parameters()).dtype

    @abstractmethod
    def prompt(self, images: Sequence[Image], text: str) -> Prompt:
        """Preprocess images and tokenise the conversation (CPU work, no weights)."""

    @abstractmethod
    def encode(self, pixels: Sequence[Tensor], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and projector over I images at once."""

    @abstractmethod
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Project rows from tower space, (K, D)."""

    @abstractmethod
    def embed(self, ids_L: Tensor) -> Tensor:
        """Embed text ids, (L, D)."""

    @abstractmethod
    def logits(self, embeds_BLD: Tensor, mask_BL: Tensor, positions_BL: Tensor, *, last: bool = False) -> Tensor:
        """Run one cached prefill and return the logits of every position, (B, L, vocabulary), or of the last only."""

    @abstractmethod
    def generate(
        self, embeds_BLD: Tensor, mask_BL: Tensor, positions_BL: Tensor, *, max_new_tokens: int, use_cache: bool = True
    ) -> list[str]:
        """Decode greedily and return the answers."""
