"""Prefill once what several questions about one image share: everything up to the image's last visual row.

Questions about one image, under a method that keeps the same rows for each, differ only after the image. The common
part is prefilled once; each question then starts from a copy of its cache. A method that cuts inside the LLM, or keeps
other rows for each question, shares nothing: its prompts are answered as usual.

Shape letters: B prompts, G distinct prefixes, P positions of the longest prefix, S of the longest rest, D the
LLM's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dpbench.backbones.base import Backbone
from dpbench.engine import forward
from dpbench.engine.forward import Batch, Generated
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.method import Method

MIN_SHARING = 1.2
"""Prompts per distinct prefix, on average, from which sharing is faster."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A batch whose prompts share prefixes.

    Attributes:
        heads: the G distinct prefixes.
        tails: what follows the prefix, for each of the B prompts.
        head_B: index of each prompt's prefix.
    """

    heads: tuple[PrunedPrompt, ...]
    tails: tuple[PrunedPrompt, ...]
    head_B: tuple[int, ...]


def generate(
    backbone: Backbone, method: Method, prompts: Sequence[PrunedPrompt], images: Sequence[str], *, max_new_tokens: int
) -> list[Generated]:
    """Answer a batch of pruned prompts greedily, as `forward.generate` does.

    Args:
        backbone: answers.
        method: bound to it.
        prompts: pruned, in any order.
        images: what prompts about the same image share; only those are compared.
        max_new_tokens: length limit.
    """
    shared = share(prompts, images) if all(prompt.num_visual and not prompt.cuts for prompt in prompts) else None
    if shared is None or len(shared.heads) * MIN_SHARING > len(prompts):
        return forward.generate(backbone, method, prompts, max_new_tokens=max_new_tokens)
    # prefixes and rests are padded apart: the padding between them is masked, so the cache of a prefix is the
    # same for all of its questions
    head, tail = forward.collate(shared.heads), forward.collate(shared.tails)
    rows = torch.tensor(shared.head_B, device=head.mask_BL.device)
    with forward.explicit_mask(backbone):
        cache = backbone.forward(head.embeds_BLD, head.mask_BL, head.positions_PBL, last=True).past_key_values
        cache.batch_select_indices(rows)
        whole = _concatenate(head, tail, rows)
        texts = backbone.generate(
            whole.embeds_BLD, whole.mask_BL, whole.positions_PBL, max_new_tokens=max_new_tokens, past_key_values=cache
        )
    return [Generated(text, ()) for text in texts]


def share(prompts: Sequence[PrunedPrompt], images: Sequence[str]) -> Shared:
    """Find which prompts share a prefix; a prefix ends at the last visual row."""
    heads: list[PrunedPrompt] = []
    tails, head_B = [], []
    heads_of_image: dict[str, list[int]] = {}
    for prompt, image in zip(prompts, images, strict=True):
        head, tail = _split(prompt)
        candidates = heads_of_image.setdefault(image, [])
        number = next((number for number in candidates if _equal(heads[number], head)), None)
        if number is None:
            number = len(heads)
            heads.append(head)
            candidates.append(number)
        head_B.append(number)
        tails.append(tail)
    return Shared(tuple(heads), tuple(tails), tuple(head_B))


def _split(prompt: PrunedPrompt) -> tuple[PrunedPrompt, PrunedPrompt]:
    """Split a prompt after its last visual row."""
    at = int(prompt.visual_L.nonzero()[-1]) + 1
    return _part(prompt, slice(0, at)), _part(prompt, slice(at, None))


def _part(prompt: PrunedPrompt, rows: slice) -> PrunedPrompt:
    return replace(
        prompt,
        embeds_LD=prompt.embeds_LD[rows],
        positions_PL=prompt.positions_PL[:, rows],
        visual_L=prompt.visual_L[rows],
    )


def _equal(one: PrunedPrompt, other: PrunedPrompt) -> bool:
    return torch.equal(one.positions_PL, other.positions_PL) and torch.equal(one.embeds_LD, other.embeds_LD)


def _concatenate(head: Batch, tail: Batch, rows: torch.Tensor) -> Batch:
    """Concatenate prefixes and rests, each left-padded.

    The cache already holds the prefixes, and `generate` reads only what comes after it, so zeros stand in for theirs.
    """
    unread = tail.embeds_BLD.new_zeros(1, head.embeds_BLD.shape[1], 1).expand(len(rows), -1, tail.embeds_BLD.shape[2])
    return Batch(
        torch.cat([unread, tail.embeds_BLD], 1),
        torch.cat([head.mask_BL[rows], tail.mask_BL], 1),
        torch.cat([head.positions_PBL[:, rows], tail.positions_PBL], 2),
    )
