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
    """Several pruned prompts, left-padded."""

    embeds_BLD: Tensor
    mask_BL: Tensor
    positions_PBL: Tensor


def collate(prompts: Sequence[PrunedPrompt]) -> Batch:
    """Left-pad prompts of ragged lengths into one batch."""
    length = max(len(prompt.embeds_LD) for prompt in prompts)
    first = prompts[0]
    embeds = first.embeds_LD.new_zeros(len(prompts), length, first.embeds_LD.shape[1])
    mask = torch.zeros(len(prompts), length, dtype=torch.int64, device=embeds.device)
    positions = mask.new_zeros(len(first.positions_PL), len(prompts), length)
    for row, prompt in enumerate(prompts):
        pad = length - len(prompt.embeds_LD)
        embeds[row, pad:], mask[row, pad:], positions[:, row, pad:] = prompt.embeds_LD, 1, prompt.positions_PL
    return Batch(embeds, mask, positions)


@contextmanager
def drop_inside_llm(backbone: Backbone, method: Method, prompts: Sequence[PrunedPrompt]) -> Iterator[DroppingState]:
    """Drop tokens inside the LLM in whatever the backbone runs on `collate(prompts)`; hooks go when the block ends.

    Inside the block anything may run on the batch, such as `backbone.model.generate(inputs_embeds=..., num_beams=3)`.

    Args:
        backbone: the model.
        method: bound to it.
        prompts: the batch, all with cuts before the same layers.

    Raises:
        ValueError: the prompts are cut before different layers.
        UnsupportedError: inside the block, what the engine cannot do.
    """
    if len({_layers(prompt) for prompt in prompts}) > 1:
        raise ValueError("prompts cut before different layers cannot be one batch")
    layouts = [_layout(prompt) for prompt in prompts]
    with explicit_mask(backbone), dropping.apply_cuts(backbone, method, layouts) as state:
        yield state


def _layers(prompt: PrunedPrompt) -> tuple[int, ...]:
    return tuple(cut.layer for cut in prompt.cuts)


def _layout(prompt: PrunedPrompt) -> PromptLayout:
    device = prompt.embeds_LD.device
    text, visual = (flags.nonzero()[:, 0].to(device) for flags in (~prompt.visual_L, prompt.visual_L))
    return PromptLayout(text, visual, prompt.cuts)


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


def logits(backbone: Backbone, method: Method, prompts: Sequence[PrunedPrompt]) -> Tensor:
    """Prefill a batch and return the logits of every position the last layer reads; padding rows mean nothing.

    (B, L, vocabulary), L being the length after the last cut.
    """
    batch = collate(prompts)
    with drop_inside_llm(backbone, method, prompts):
        return backbone.logits(batch.embeds_BLD, batch.mask_BL, batch.positions_PBL)


def survivors(backbone: Backbone, method: Method, prompt: PrunedPrompt) -> tuple[int, ...]:
    """Prefill one prompt and return how many visual rows each cut left."""
    if not prompt.cuts:
        return ()
    batch = collate([prompt])
    with drop_inside_llm(backbone, method, [prompt]) as state:
        backbone.logits(batch.embeds_BLD, None, batch.positions_PBL, last=True)
    return tuple(map(len, state.kept_rows()[0]))


def prefill(backbone: Backbone, method: Method, prompts: Sequence[PrunedPrompt]) -> Tensor:
    """Prefill a batch and return the logits of the next token, (B, vocabulary)."""
    batch = collate(prompts)
    padded = len({len(prompt.embeds_LD) for prompt in prompts}) > 1
    with drop_inside_llm(backbone, method, prompts):
        mask = batch.mask_BL if padded else None
        return backbone.logits(batch.embeds_BLD, mask, batch.positions_PBL, last=True)[:, -1]


@dataclass(frozen=True, slots=True)
class Generated:
    """One prompt's answer, and per cut which of its visual rows survived (-1 for merged ones), on the CPU.

    The text is None where the model's logits were NaN or infinite.
    """

    text: str | None
    kept_rows: tuple[Tensor, ...]


def last_indices(prompt: PrunedPrompt, generated: Generated) -> tuple[Tensor, ...]:
    """Return per image which tokens the last layer read, in order; -1 for rows that are no single token."""
    rows = torch.cat(prompt.tokens)
    images = torch.cat([torch.full_like(tokens, n) for n, tokens in enumerate(prompt.tokens)])
    for kept in generated.kept_rows[-1:]:
        single = kept.clamp(min=0)
        rows, images = torch.where(kept < 0, -1, rows[single]), images[single]
    return tuple(rows[images == n] for n in range(len(prompt.tokens)))


def generate(
    backbone: Backbone, method: Method, prompts: Sequence[PrunedPrompt], *, max_new_tokens: int, use_cache: bool = True
) -> list[Generated]:
    """Answer a batch of pruned prompts greedily; prompts cut before different layers run in separate batches."""
    answers: dict[int, Generated] = {}
    for layers in dict.fromkeys(map(_layers, prompts)):
        numbers = [number for number, prompt in enumerate(prompts) if _layers(prompt) == layers]
        part = [prompts[number] for number in numbers]
        batch = collate(part)
        with drop_inside_llm(backbone, method, part) as state:
            texts = backbone.generate(
                batch.embeds_BLD,
                batch.mask_BL,
                batch.positions_PBL,
                max_new_tokens=max_new_tokens,
                use_cache=use_cache,
            )
        for number, text, kept in zip(numbers, texts, state.kept_rows(), strict=True):
            answers[number] = Generated(text, tuple(rows.cpu() for rows in kept))
    return [answers[number] for number in range(len(prompts))]
