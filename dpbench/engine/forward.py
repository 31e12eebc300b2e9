"""Run a backbone on pruned prompts: pad them into a batch, prefill, generate. Every hook is removed on the way out.

Shape letters: B prompts, L prompt positions, D the LLM's width, P position axes (1, or M-RoPE's 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpbench.backbones.base import Backbone
from dpbench.engine import dropping
from dpbench.engine.dropping import DroppingState, PromptLayout
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.method import Method


@dataclass(frozen=True, slots=True)
class Batch:
    """Several spliced prompts, left-padded."""

    embeds_BLD: Tensor
    mask_BL: Tensor
    positions_PBL: Tensor


def collate(spliced: Sequence[PrunedPrompt]) -> Batch:
    """Left-pad prompts of ragged lengths into one batch."""
    length = max(len(each.embeds_LD) for each in spliced)
    first = spliced[0]
    embeds = first.embeds_LD.new_zeros(len(spliced), length, first.embeds_LD.shape[1])
    mask = torch.zeros(len(spliced), length, dtype=torch.int64, device=embeds.device)
    positions = mask.new_zeros(len(first.positions_PL), len(spliced), length)
    for row, each in enumerate(spliced):
        pad = length - len(each.embeds_LD)
        embeds[row, pad:], mask[row, pad:], positions[:, row, pad:] = each.embeds_LD, 1, each.positions_PL
    return Batch(embeds, mask, positions)


@contextmanager
def prune(backbone: Backbone, method: Method, spliced: Sequence[PrunedPrompt]) -> Iterator[DroppingState]:
    """Cut inside the LLM in whatever the backbone runs on `collate(spliced)`; afterwards the model is as it was.

    `with prune(backbone, method, spliced): backbone.model.generate(inputs_embeds=..., num_beams=3)` works as well as
    the functions below.

    Args:
        backbone: the model.
        method: bound to it.
        spliced: the batch, all with cuts before the same layers.

    Raises:
        ValueError: the prompts are cut before different layers.
        UnsupportedError: inside the block, what the engine cannot do.
    """
    if len({_layers(each) for each in spliced}) > 1:
        raise ValueError("prompts cut before different layers cannot be one batch")
    layouts = [_layout(each) for each in spliced]
    with explicit_mask(backbone), dropping.apply_cuts(backbone, method, layouts) as state:
        yield state


def _layers(spliced: PrunedPrompt) -> tuple[int, ...]:
    return tuple(each.layer for each in spliced.cuts)


def _layout(spliced: PrunedPrompt) -> PromptLayout:
    device = spliced.embeds_LD.device
    text, visual = (flags.nonzero()[:, 0].to(device) for flags in (~spliced.visual_L, spliced.visual_L))
    return PromptLayout(text, visual, spliced.cuts)


@contextmanager
def explicit_mask(backbone: Backbone) -> Iterator[None]:
    """Give the decoder an all-ones mask wherever it would get neither mask nor cache.

    `generate` drops a mask of ones; without a cache, transformers then reads gaps in the position ids as the borders of
    packed sequences and stops attention across them, silently.
    """

    def fill(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        cached = cache is not None or bool(kwargs.get("use_cache"))
        if kwargs.get("attention_mask") is None and embeds is not None and not cached:
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
            kwargs = {**kwargs, "attention_mask": mask}
        return args, kwargs

    handle = backbone.decoder.register_forward_pre_hook(fill, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def logits(backbone: Backbone, method: Method, spliced: Sequence[PrunedPrompt]) -> Tensor:
    """Prefill a batch and return the logits of every position the last layer reads; padding rows mean nothing.

    (B, L, vocabulary), L being the length after the last cut.
    """
    batch = collate(spliced)
    with prune(backbone, method, spliced):
        return backbone.logits(batch.embeds_BLD, batch.mask_BL, batch.positions_PBL)


def prefill(backbone: Backbone, method: Method, spliced: Sequence[PrunedPrompt]) -> Tensor:
    """Prefill a batch and return the logits of the next token, (B, vocabulary)."""
    batch = collate(spliced)
    padded = len({len(each.embeds_LD) for each in spliced}) > 1
    with prune(backbone, method, spliced):
        mask = batch.mask_BL if padded else None
        return backbone.logits(batch.embeds_BLD, mask, batch.positions_PBL, last=True)[:, -1]


@dataclass(frozen=True, slots=True)
class Generated:
    """One prompt's answer, and per cut which of its visual rows survived (-1 for merged ones), on the CPU."""

    text: str
    kept_rows: tuple[Tensor, ...]


def last_indices(spliced: PrunedPrompt, generated: Generated) -> tuple[Tensor, ...]:
    """Return per image which tokens the last layer read, in order; -1 for rows that are no single token."""
    rows = torch.cat(spliced.tokens)
    images = torch.cat([torch.full_like(each, n) for n, each in enumerate(spliced.tokens)])
    for kept in generated.kept_rows[-1:]:
        single = kept.clamp(min=0)
        rows, images = torch.where(kept < 0, -1, rows[single]), images[single]
    return tuple(rows[images == n] for n in range(len(spliced.tokens)))


def generate(
    backbone: Backbone, method: Method, spliced: Sequence[PrunedPrompt], *, max_new_tokens: int, use_cache: bool = True
) -> list[Generated]:
    """Answer a batch of pruned prompts greedily; prompts cut before different layers are run apart."""
    answers: dict[int, Generated] = {}
    for layers in dict.fromkeys(map(_layers, spliced)):
        numbers = [number for number, each in enumerate(spliced) if _layers(each) == layers]
        part = [spliced[number] for number in numbers]
        batch = collate(part)
        with prune(backbone, method, part) as state:
            texts = backbone.generate(
                batch.embeds_BLD,
                batch.mask_BL,
                batch.positions_PBL,
                max_new_tokens=max_new_tokens,
                use_cache=use_cache,
            )
        for number, text, kept in zip(numbers, texts, state.kept_rows(), strict=True):
            answers[number] = Generated(text, tuple(each.cpu() for each in kept))
    return [answers[number] for number in range(len(spliced))]
