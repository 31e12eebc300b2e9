"""The loss of a caption behind an image, which training differentiates in the image's visual tokens.

Shape letters: L prompt positions, N visual tokens of one image, D the LLM's width, B prompts, T caption tokens of all
prompts, V vocabulary, P position axes (1, or M-RoPE's 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpbench.backbones.base import Backbone, Features, Prompt


@dataclass(frozen=True, slots=True)
class _Captioned:
    """One prompt with its image and a caption behind it.

    Attributes:
        embeds_LD: prompt and caption.
        positions_PL: int64 position ids.
        reply: int64 ids of the caption and the end token, the last of the L positions.
    """

    embeds_LD: Tensor
    positions_PL: Tensor
    reply: Tensor


def caption_losses(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Sequence[Features],
    visual: Sequence[Tensor],
    captions: Sequence[str],
    kept: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the cross-entropy of every caption token, (T,), differentiable in the visual embeddings.

    Arguments as of `caption_logits`.
    """
    logits_TV, labels_T = caption_logits(backbone, prompts, features, visual, captions, kept)
    return nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")


def caption_logits(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Sequence[Features],
    visual: Sequence[Tensor],
    captions: Sequence[str],
    kept: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what is predicted for every caption token, (T, V) in float32 or better, and the token, (T,) int64.

    Args:
        backbone: reads the prompts.
        prompts: B prompts of one image each.
        features: B images, for where each token goes.
        visual: per image (N, D), in tower order, in place of `Features.embeds_ND`.
        captions: the B replies.
        kept: per image the int64 indices, on the CPU, of the tokens that stay, at their original positions and
            without newlines; by default all stay.
    """
    stays = kept if kept is not None else [None] * len(prompts)
    images = zip(prompts, features, visual, captions, stays, strict=True)
    rows = [_put_together(backbone, *image) for image in images]
    hidden = _hidden(backbone, rows)
    wanted = torch.cat([hidden[i, len(r.embeds_LD) - len(r.reply) - 1 :][: len(r.reply)] for i, r in enumerate(rows)])
    labels = torch.cat([row.reply for row in rows]).to(backbone.device)
    logits = backbone.model.lm_head(wanted)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


def _put_together(
    backbone: Backbone, prompt: Prompt, features: Features, visual_ND: Tensor, caption: str, kept: Tensor | None
) -> _Captioned:
    """Put an image's embeddings, or those kept of them, into its prompt and the caption behind it."""
    reply = backbone.conversation.reply(caption)
    (start, stop), slots = prompt.spans[0], features.slot_N
    text = backbone.embed(torch.cat([prompt.ids_L, reply]))
    read = (slots >= 0).nonzero()[:, 0] if kept is None else kept[slots[kept] >= 0]
    read = read[slots[read].argsort()]
    rows, places = visual_ND.to(text.dtype)[read.to(text.device)], slots[read]
    if kept is None and features.newline_D is not None:
        newlines = features.newline_D.to(text.dtype).expand(stop - start, -1)
        rows, places = newlines.index_copy(0, places.to(text.device), rows), torch.arange(stop - start)
    positions = prompt.positions_PL if prompt.positions_PL is not None else torch.arange(len(prompt.ids_L))[None]
    later = positions[:, -1:] + torch.arange(1, len(reply) + 1)
    positions = torch.cat([positions[:, :start], positions[:, start + places], positions[:, stop:], later], 1)
    return _Captioned(torch.cat([text[:start], rows, text[stop:]]), positions, reply)


def _hidden(backbone: Backbone, rows: Sequence[_Captioned]) -> Tensor:
    """Return what the decoder's last layer makes of B rows, padded behind, (B, L, D)."""
    sizes = torch.tensor([len(row.embeds_LD) for row in rows])
    embeds = nn.utils.rnn.pad_sequence([row.embeds_LD for row in rows], batch_first=True)
    positions = nn.utils.rnn.pad_sequence([row.positions_PL.T for row in rows], batch_first=True).permute(2, 0, 1)
    mask = (torch.arange(embeds.shape[1]) < sizes[:, None]).long()
    mask, positions = mask.to(backbone.device), positions.to(backbone.device)
    return backbone.decoder(  # type: ignore[no-any-return]
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=backbone.position_ids(positions, mask),
        use_cache=False,
    ).last_hidden_state
