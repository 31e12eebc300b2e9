"""The engine: apply a method's decisions to a backbone's forward and generate.

Pre-LLM selection and merging shrink the prompt before the decoder: embeddings, positions and mask are built once. A
reduction is a decision only; what happens to it is here. This is the only file whose hooks change values.

Shape letters: B prompts, L prompt positions, N visual tokens of one image, K rows kept, D the LLM's width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.errors import UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens


@dataclass(frozen=True, slots=True)
class Spliced:
    """One prompt as the LLM reads it after pruning.

    Attributes:
        embeds_LD: text and surviving visual rows, in order.
        positions_L: int64 position ids.
        kept: per image, the decision that was applied.
        num_visual: visual rows the LLM reads.
    """

    embeds_LD: Tensor
    positions_L: Tensor
    kept: tuple[Reduction, ...]
    num_visual: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Several spliced prompts, left-padded."""

    embeds_BLD: Tensor
    mask_BL: Tensor
    positions_BL: Tensor


def image_generator(seed: int, sample: str, image: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on cell seed, sample and image only, not on what ran before."""
    digest = hashlib.sha256(f"{seed}/{sample}/{image}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def visual_tokens(features: Features, question: str, generator: torch.Generator) -> VisualTokens:
    """Hand one image's features to a method."""
    values = {name: getattr(features, name) for name in Features.__slots__}
    return VisualTokens(**values, question=question, generator=generator)


def reduce_image(method: Method, visual: VisualTokens, keep: int) -> Reduction:
    """Ask a method for its decision and check it.

    Args:
        method: already bound to the backbone.
        visual: the image's tokens.
        keep: the budget; more than N is the same as N.

    Raises:
        ValueError: the decision breaks the contract (a bug in the method).
    """
    reduction = method.reduce(visual, min(keep, len(visual)))
    indices = reduction.indices_K
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"{type(method).__name__}.reduce: indices_K must be 1-D int64, got {indices.dtype}")
    if bool(((indices < -1) | (indices >= len(visual))).any()):
        raise ValueError(f"{type(method).__name__}.reduce: an index is outside -1..{len(visual) - 1}")
    if bool((indices < 0).any()) and method.positions == "original":
        raise ValueError(f"{type(method).__name__}.reduce: rows without a token of their own need compact positions")
    return reduction


def rows_of(backbone: Backbone, visual: VisualTokens, reduction: Reduction) -> Tensor:
    """Return the rows the LLM reads for one image, (K, D)."""
    if reduction.embeds_KD is not None:
        return reduction.embeds_KD
    if reduction.hidden_KC is not None:
        return backbone.project(reduction.hidden_KC)
    if bool((reduction.indices_K < 0).any()):
        raise ValueError("a reduction with rows that are no single token must bring embeds_KD or hidden_KC")
    return visual.embeds_ND[reduction.indices_K]


def check_supported(method: Method) -> None:
    """Refuse what this engine would otherwise ignore.

    Raises:
        UnsupportedError: the method cuts inside the LLM or resizes the image.
    """
    if type(method).cuts is not Method.cuts:
        raise UnsupportedError(f"{type(method).__name__} prunes inside the LLM; this engine prunes before it only")
    if type(method).resize is not Method.resize:
        raise UnsupportedError(f"{type(method).__name__} resizes the image, which this engine does not do")


def splice(
    backbone: Backbone, method: Method, prompt: Prompt, visuals: Sequence[VisualTokens], keep: Sequence[int]
) -> Spliced:
    """Build one prompt from its text and what the method keeps of each image.

    Args:
        backbone: embeds text and projects.
        method: decides.
        prompt: the unpruned prompt.
        visuals: one entry per image, in the order of the placeholders.
        keep: visual tokens to keep, per image.

    """
    reductions = tuple(reduce_image(method, visual, k) for visual, k in zip(visuals, keep, strict=True))
    text = backbone.embed(prompt.ids_L)
    parts, slots = [], []
    for start, stop, image in _runs(prompt.visual_L, [len(visual) for visual in visuals]):
        if image is None:
            parts.append(text[start:stop])
            slots.append(torch.arange(start, stop))
            continue
        rows = rows_of(backbone, visuals[image], reductions[image])
        parts.append(rows.to(text.dtype))
        slots.append(start + reductions[image].indices_K.cpu())
    slots_L = torch.cat(slots)
    positions = torch.arange(len(slots_L)) if method.positions == "compact" else slots_L
    num_visual = sum(len(reduction.indices_K) for reduction in reductions)
    return Spliced(torch.cat(parts), positions.to(text.device), reductions, num_visual)


def _runs(visual_L: Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
    """Yield (start, stop, image number or None for text) over the prompt; adjacent images are told apart by size."""
    flags, at, image = visual_L.tolist(), 0, 0
    while at < len(flags):
        if flags[at]:
            stop = at + sizes[image]
            yield at, stop, image
            image += 1
        else:
            stop = at
            while stop < len(flags) and not flags[stop]:
                stop += 1
            yield at, stop, None
        at = stop


def collate(spliced: Sequence[Spliced]) -> Batch:
    """Left-pad prompts of ragged lengths into one batch."""
    length = max(len(each.embeds_LD) for each in spliced)
    first = spliced[0].embeds_LD
    embeds = first.new_zeros(len(spliced), length, first.shape[1])
    mask = torch.zeros(len(spliced), length, dtype=torch.int64, device=first.device)
    positions = torch.zeros_like(mask)
    for row, each in enumerate(spliced):
        pad = length - len(each.embeds_LD)
        embeds[row, pad:], mask[row, pad:], positions[row, pad:] = each.embeds_LD, 1, each.positions_L
    return Batch(embeds, mask, positions)


@contextmanager
def explicit_mask(backbone: Backbone) -> Iterator[None]:
    """Give the decoder an all-ones mask wherever it would get none.

    `generate` drops a mask of ones; without mask and cache, transformers then reads gaps in the position ids as the
    borders of packed sequences and stops attention across them, silently.
    """

    def fill(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs.get("inputs_embeds")
        if kwargs.get("attention_mask") is None and embeds is not None:
            cache = kwargs.get("past_key_values")
            past = cache.get_seq_length() if cache is not None else 0
            mask = torch.ones(embeds.shape[0], past + embeds.shape[1], dtype=torch.int64, device=embeds.device)
            kwargs = {**kwargs, "attention_mask": mask}
        return args, kwargs

    handle = backbone.decoder.register_forward_pre_hook(fill, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def logits(backbone: Backbone, spliced: Sequence[Spliced]) -> Tensor:
    """Prefill a batch and return the logits of every position, (B, L, vocabulary); padding rows mean nothing."""
    batch = collate(spliced)
    with explicit_mask(backbone):
        return backbone.logits(batch.embeds_BLD, batch.mask_BL, batch.positions_BL)


def prefill(backbone: Backbone, spliced: Sequence[Spliced]) -> Tensor:
    """Prefill a batch and return the logits of the next token, (B, vocabulary)."""
    batch = collate(spliced)
    with explicit_mask(backbone):
        return backbone.logits(batch.embeds_BLD, batch.mask_BL, batch.positions_BL, last=True)[:, -1]


def generate(
    backbone: Backbone, spliced: Sequence[Spliced], *, max_new_tokens: int, use_cache: bool = True
) -> list[str]:
    """Answer a batch of pruned prompts greedily."""
    batch = collate(spliced)
    with explicit_mask(backbone):
        return backbone.generate(
            batch.embeds_BLD,
            batch.mask_BL,
            batch.positions_BL,
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
        )
