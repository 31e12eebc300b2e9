"""Build the prompt that the LLM reads: the text, and of each image what the method keeps or merges.

Embeddings, position ids and mask are built once, before the decoder. Cuts inside the LLM are only data here
(`PrunedPrompt.cuts`); `engine.dropping` carries them out.

Shape letters: L prompt positions, N visual tokens of one image, K rows kept, D the LLM's width, P position axes (1, or
M-RoPE's 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.budget import ROUNDING
from dpbench.engine.decision import Rule, has_reduce, reduce_image, visual_tokens
from dpbench.method import Budget, Cut, Method, Reduction


@dataclass(frozen=True, slots=True)
class PrunedPrompt:
    """One prompt as the LLM reads it after pruning.

    Attributes:
        embeds_LD: text and surviving visual rows, in order.
        positions_PL: int64 position ids.
        visual_L: bool on the CPU, which rows are visual; newlines are text.
        kept: per image, the decision that was applied, its indices on the CPU.
        tokens: per image, which of its tokens each visual row is, in the order the LLM reads them; -1 for rows that are
            no single token. On the CPU.
        cuts: where and how far the method cuts inside the LLM.
    """

    embeds_LD: Tensor
    positions_PL: Tensor
    visual_L: Tensor
    kept: tuple[Reduction, ...]
    tokens: tuple[Tensor, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def num_visual(self) -> int:
        """Return how many visual rows the first layer reads."""
        return int(self.visual_L.sum())

    def allowed_per_layer(self, num_layers: int) -> tuple[int, ...]:
        """Return how many visual rows each decoder layer may read; a method's `select` may keep fewer."""
        return per_layer(self.num_visual, num_layers, self.cuts)

    def read_per_layer(self, num_layers: int, survivors: Sequence[int]) -> tuple[int, ...]:
        """Return how many visual rows each decoder layer read.

        Args:
            num_layers: of the decoder.
            survivors: how many rows each cut left, merged ones included.
        """
        made = [replace(cut, keep=num) for cut, num in zip(self.cuts, survivors, strict=True)]
        return per_layer(self.num_visual, num_layers, made)


def per_layer(num_visual: int, num_layers: int, cuts: Sequence[Cut]) -> tuple[int, ...]:
    """Return how many visual rows each decoder layer reads if every cut leaves `keep`, given what the first reads."""
    counts = [num_visual] * num_layers
    for cut in cuts:
        counts[cut.layer :] = [min(cut.keep, counts[cut.layer - 1])] * (num_layers - cut.layer)
    return tuple(counts)


def splice(
    backbone: Backbone,
    method: Method,
    prompt: Prompt,
    features: Sequence[Features],
    generators: Sequence[torch.Generator],
    rule: Rule,
) -> PrunedPrompt:
    """Build one prompt from its text and what the method keeps of each image.

    Args:
        backbone: embeds text and projects.
        method: decides.
        prompt: the unpruned prompt.
        features: one entry per image, in the order of the placeholders.
        generators: the method's source of randomness, per image.
        rule: the budget per image.
    """
    kept = decide(backbone, method, prompt, features, generators, rule)
    return assemble(backbone, method, prompt, features, kept, rule)


def decide(
    backbone: Backbone,
    method: Method,
    prompt: Prompt,
    features: Sequence[Features],
    generators: Sequence[torch.Generator],
    rule: Rule,
) -> tuple[Reduction, ...]:
    """Ask the method for its decision on each image of a prompt; arguments as in `splice`."""
    kept = []
    for image, generator in zip(features, generators, strict=True):
        visual = visual_tokens(image, prompt.question, generator)
        kept.append(reduce_image(method, visual, rule, num_read=image.num_read, max_views=backbone.max_views))
    return tuple(kept)


def assemble(
    backbone: Backbone,
    method: Method,
    prompt: Prompt,
    features: Sequence[Features],
    kept: Sequence[Reduction],
    rule: Rule,
) -> PrunedPrompt:
    """Build the prompt that decisions, one per image, leave; the other arguments as in `splice`."""
    images = list(zip(features, kept, strict=True))
    text, length = backbone.embed(prompt.ids_L), len(prompt.ids_L)
    parts, slots, visual_flags, tokens, at = [], [], [], [], 0
    for (start, stop), (image, reduction) in zip(prompt.spans, images, strict=True):
        rows, places, flags, token = _image_rows(backbone, method, image, reduction, rule)
        parts += [text[at:start], rows.to(text.dtype)]
        slots += [torch.arange(at, start), start + places]
        visual_flags += [torch.zeros(start - at, dtype=torch.bool), flags]
        tokens.append(token)
        at = stop
    slots_L = torch.cat([*slots, torch.arange(at, length)])
    visual_L = torch.cat([*visual_flags, torch.zeros(length - at, dtype=torch.bool)])
    budget = Budget(sum(rule.budget.count(image.num_read) for image, _ in images), rule.kind)
    cuts = validate_cuts(method, int(visual_L.sum()), backbone.num_layers, budget)
    positions = _positions(backbone, method, prompt, slots_L)
    embeds = torch.cat([*parts, text[at:]])
    return PrunedPrompt(embeds, positions.to(embeds.device), visual_L, tuple(r for _, r in images), tuple(tokens), cuts)


def _image_rows(
    backbone: Backbone, method: Method, features: Features, reduction: Reduction, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows the LLM reads for one image (K, D), the placeholder of each, which are visual, and their tokens.

    Tokens that unpadding drops are left out. A row that is not a single token gets the placeholder of its predecessor.
    With newlines or original positions, rows are in the order of their placeholders.
    """
    indices = reduction.indices_K
    slots = torch.where(indices < 0, -2, features.slot_N[indices.clamp(min=0)])
    read = (slots != -1).nonzero()[:, 0]
    rows = compute_rows(backbone, features, reduction)
    if len(read) < len(slots):
        rows, slots, indices = rows[read.to(rows.device)], slots[read], indices[read]
    slots = _fill_slots(slots)
    if method.positions == "original":
        slots, order = slots.sort(stable=True)
        rows, indices = rows[order.to(rows.device)], indices[order]
    flags = torch.ones(len(slots), dtype=torch.bool)
    if features.newline_D is None or (has_reduce(method) and rule.newline == "drop"):
        return rows, slots, flags, indices
    # AnyRes ends every row of tiles with a newline: those are the placeholders that no token fills, whether or not the
    # method keeps a token of their row
    filled = torch.zeros(features.num_read + features.num_newlines, dtype=torch.bool)
    filled[features.slot_N[features.slot_N >= 0]] = True
    newlines = (~filled).nonzero()[:, 0]
    slots, order = torch.cat([slots, newlines]).sort(stable=True)
    rows = torch.cat([rows, features.newline_D.to(rows)[None].expand(len(newlines), -1)])[order.to(rows.device)]
    visual = order < len(flags)
    return rows, slots, visual, indices[order[visual]]


def _fill_slots(slots: Tensor) -> Tensor:
    """Give rows that are no single token (-2) the placeholder of the row before them, or the first."""
    order = torch.where(slots >= 0, torch.arange(len(slots)), -1)
    source = order.cummax(0).values if len(slots) else order
    return torch.where(source < 0, 0, slots[source.clamp(min=0)])


def compute_rows(backbone: Backbone, features: Features, reduction: Reduction) -> Tensor:
    """Return the rows a decision stands for, (K, D)."""
    if reduction.embeds_KD is not None:
        return reduction.embeds_KD
    if reduction.hidden_KC is not None:
        return backbone.project(reduction.hidden_KC)
    return features.embeds_ND[reduction.indices_K.to(features.embeds_ND.device)]


def _positions(backbone: Backbone, method: Method, prompt: Prompt, slots_L: Tensor) -> Tensor:
    """Return (P, L) position ids: M-RoPE's own, the placeholders' numbers, or numbers without gaps."""
    if prompt.positions_PL is not None:
        return prompt.positions_PL[:, slots_L]
    return (torch.arange(len(slots_L)) if method.positions == "compact" else slots_L)[None]


def validate_cuts(method: Method, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
    """Return a method's cuts for one prompt, checked against the contract and, unless they spend their own, the budget.

    Raises:
        ValueError: the cuts break the contract (a bug in the method).
    """
    if not num_visual or type(method).cuts is Method.cuts:
        return ()
    cuts, name = method.cuts(num_visual, num_layers, budget), type(method).__name__
    before = Cut(0, num_visual, 0)
    for cut in cuts:
        if not (before.layer < cut.layer < num_layers and before.layer <= cut.probe <= cut.layer):
            raise ValueError(f"{name}.cuts: {cut} must come after {before} and before layer {num_layers}")
        if not 0 <= cut.keep <= before.keep:
            raise ValueError(f"{name}.cuts: {cut} keeps more than the {before.keep} that are left")
        before = cut
    counts = per_layer(num_visual, num_layers, cuts)
    reached = sum(counts) / num_layers if budget.kind == "mean" else counts[-1]
    if method.spends == "per-image" and reached > min(budget.count, num_visual) + ROUNDING:
        raise ValueError(f"{name}.cuts: {reached:.1f} visual tokens ({budget.kind}) for a budget of {budget.count}")
    return cuts
