"""Tokenise a conversation about images: what is asked and answered is text, whatever special tokens it names.

Shape letter: L prompt positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_STAND_IN = "\ue000"
"""A private-use character in place of a question that contains a special token."""


class ConversationTokenizer:
    """Reads conversations with a model's tokenizer.

    Args:
        tokenizer: transformers' own; its vocabulary must not change afterwards.
        image_id: the id of an image's placeholder.
    """

    def __init__(self, tokenizer: Any, image_id: int) -> None:
        self.tokenizer, self.image_id = tokenizer, image_id
        self._special = tuple(tokenizer.get_added_vocab())

    def prompt(self, chat: Callable[[str], str], text: str) -> Tensor:
        """Return the ids of a conversation with one placeholder an image, int64 (L,).

        The pieces around the placeholders are tokenised apart, as in LLaVA's code. Given the whole, a SentencePiece
        tokenizer with `legacy: false` in its file loses the space that begins the text behind an image.

        Args:
            chat: puts a question into the conversation, each image as its placeholder.
            text: what is asked.
        """
        # A question may name a special token, such as "<image>"; where it is put in later, it is found to be text.
        asked = _STAND_IN if self._names_special(text) or _STAND_IN in text else text
        first, *others = chat(asked).split(self.tokenizer.convert_ids_to_tokens(self.image_id))
        ids = self._piece(first, text, add_special_tokens=True)
        for piece in others:
            ids += [self.image_id, *self._piece(piece, text, add_special_tokens=False)]
        return torch.tensor(ids, dtype=torch.int64)

    def reply(self, caption: str) -> Tensor:
        """Return the ids of a caption as an answer, with the end token, int64 (L,)."""
        return torch.tensor([*self._text(f" {caption}"), self.tokenizer.eos_token_id], dtype=torch.int64)

    def _piece(self, piece: str, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a piece; the text that stands for the stand-in has no special tokens, whatever it says."""
        if _STAND_IN not in piece:
            return self._template(piece, add_special_tokens) if piece else []
        before, after = piece.split(_STAND_IN)
        if not self._names_special(before + after):
            before, text, after = "", before + text + after, ""
        return self._template(before, add_special_tokens) + self._text(text) + self._template(after, False)

    def _template(self, piece: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of what the conversation's template says, special tokens included."""
        settings = {"add_special_tokens": add_special_tokens, "split_special_tokens": False}
        return list(self.tokenizer(piece, **settings)["input_ids"])

    def _text(self, text: str) -> list[int]:
        """Return the ids of what a person wrote."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _names_special(self, text: str) -> bool:
        return any(word in text for word in self._special)


def find_spans(ids_L: Tensor, image_id: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return where each image's placeholders begin and end; adjacent images are told apart by size.

    Raises:
        ValueError: the placeholders are not those of images of these sizes.
    """
    at = (ids_L == image_id).nonzero()[:, 0].tolist()
    if len(at) != sum(sizes):
        raise ValueError(f"{len(at)} placeholders in the prompt, {sum(sizes)} rows of images")
    spans, used = [], 0
    for size in sizes:
        spans.append((at[used], at[used] + size))
        used += size
    return tuple(spans)
