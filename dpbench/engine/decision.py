"""Ask a method for its decision on one image, before the LLM, and validate it against the contract.

Shape letters: N visual tokens of one image, K rows kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.manifest.cell import Cell
from dpbench.method import Budget, ImageTokens, Method, Reduction, VisualTokens

_FIELDS = tuple(declared.name for declared in fields(ImageTokens))
_PER_TOKEN = tuple(name for name in _FIELDS if "N" in name.rpartition("_")[2])
"""The tensors with one entry per token, by the N among their shape letters."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How to apply a budget, and how to treat AnyRes's views and newlines.

    Attributes:
        budget: as requested.
        kind: what the count means for methods that cut inside the LLM.
        anyres: "per-view" leaves it to the method, "global" shares the budget over all views in any case.
        newline: whether AnyRes's newlines stay where a method selects before the LLM.
    """

    budget: BudgetRequest = EVERYTHING
    kind: Literal["mean", "final"] = "mean"
    anyres: Literal["per-view", "global"] = "per-view"
    newline: Literal["keep", "drop"] = "drop"


def build_rule(cell: Cell) -> Rule:
    """Build the rule that a cell's budget and protocol describe."""
    return Rule(budget=cell.budget, kind=cell.budget_kind, anyres=cell.protocol.anyres, newline=cell.protocol.newline)


def image_generator(seed: int, sample: str, image: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on cell seed, sample and image only, not on what ran before."""
    digest = hashlib.sha256(f"{seed}/{sample}/{image}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def visual_tokens(features: Features, question: str, generator: torch.Generator) -> VisualTokens:
    """Build what a method reads from one image's features."""
    values = {name: getattr(features, name) for name in _FIELDS}
    values["slot_N"] = features.slot_N.to(features.embeds_ND.device)
    return VisualTokens(**values, question=question, generator=generator)


def select_view(visual: VisualTokens, view: int) -> VisualTokens:
    """Return the tokens of one view, as if it were the image."""
    size = len(visual) // (int(visual.view_N[-1]) + 1)
    part = slice(view * size, (view + 1) * size)
    values = {name: value[part] for name in _PER_TOKEN if (value := getattr(visual, name)) is not None}
    values["view_N"] = torch.zeros_like(values["view_N"])
    rows = {layer: attention[:, part] for layer, attention in visual.cls_attention.items()}
    cls_hidden = None if visual.cls_hidden_VC is None else visual.cls_hidden_VC[view : view + 1]
    return replace(visual, **values, cls_attention=rows, cls_hidden_VC=cls_hidden)


def reduce_image(method: Method, visual: VisualTokens, rule: Rule, *, num_read: int, max_views: int = 1) -> Reduction:
    """Ask a method for its decision on one image and check it; the indices come back on the CPU.

    Args:
        method: already bound to the backbone.
        visual: the image's tokens.
        rule: the budget and how it is shared over views.
        num_read: how many of the tokens the unpruned LLM reads.
        max_views: the most views an image has; a count is shared over so many, however many this one has.

    Raises:
        ValueError: the decision breaks the contract (a bug in the method).
    """
    num_views = int(visual.view_N[-1]) + 1 if max_views > 1 else 1
    if num_views == 1 or method.anyres == "global" or rule.anyres == "global" or not has_reduce(method):
        keep = min(rule.budget.count(num_read), len(visual))
        return _validate(method, method.reduce(visual, keep), visual, keep)
    size = len(visual) // num_views
    keep = rule.budget.per_view(max_views).count(size)
    if method.anyres == "own":
        return _validate(method, method.reduce(visual, keep * num_views), visual, keep * num_views)
    views = [select_view(visual, number) for number in range(num_views)]
    return _concatenate([_validate(method, method.reduce(view, keep), view, keep) for view in views], size)


def _validate(method: Method, reduction: Reduction, visual: VisualTokens, keep: int) -> Reduction:
    """Validate a decision against the contract. Costs one device sync, which copying the indices needs anyway."""
    name = f"{type(method).__name__}.reduce"
    _check_shapes(name, reduction, visual)
    indices, scores = reduction.indices_K, reduction.scores_N
    if has_reduce(method) and method.spends == "per-image" and len(indices) > keep:
        raise ValueError(f"{name}: {len(indices)} rows for a budget of {keep}")
    if scores is None:
        indices, undefined = indices.cpu(), 0
    else:
        copied = torch.cat([indices, scores.isnan().sum()[None].to(indices.device)]).cpu()
        indices, undefined = copied[:-1], int(copied[-1])
    if undefined:
        raise ValueError(f"{name}: {undefined} of {len(scores)} scores are NaN")  # type: ignore[arg-type]
    _check_indices(name, indices, len(visual))
    merges = len(indices) > 0 and int(indices.min()) < 0
    if merges and method.positions == "original":
        raise ValueError(f"{name}: rows without a token of their own need compact positions")
    if merges and reduction.embeds_KD is None and reduction.hidden_KC is None:
        raise ValueError(f"{name}: rows that are no single token must bring embeds_KD or hidden_KC")
    return replace(reduction, indices_K=indices)


def _check_shapes(name: str, reduction: Reduction, visual: VisualTokens) -> None:
    """Raise if this is not a decision, or if its tensors fit neither the image nor one another."""
    if not isinstance(reduction, Reduction) or not isinstance(reduction.indices_K, Tensor):
        raise ValueError(f"{name}: must return a Reduction with indices_K, got {type(reduction).__name__}")
    indices = reduction.indices_K
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"{name}: indices_K must be 1-D int64, got {indices.dtype} of shape {tuple(indices.shape)}")
    expected = {
        "embeds_KD": (len(indices), visual.embeds_ND.shape[1]),
        "hidden_KC": (len(indices), visual.hidden_NC.shape[1]),
        "scores_N": (len(visual),),
    }
    for field_name, shape in expected.items():
        tensor = getattr(reduction, field_name)
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: {field_name} must have shape {shape}, got {tuple(tensor.shape)}")


def _check_indices(name: str, indices_K: Tensor, num_visual: int) -> None:
    """Raise if an index, on the CPU, is out of range or a token is kept twice."""
    listed = indices_K.tolist()
    if listed and not (min(listed) >= -1 and max(listed) < num_visual):
        raise ValueError(f"{name}: an index is outside -1..{num_visual - 1}")
    if len(set(listed) - {-1}) < len(listed) - listed.count(-1):
        raise ValueError(f"{name}: a token is kept twice")


def _concatenate(parts: Sequence[Reduction], size: int) -> Reduction:
    """Concatenate the views' decisions; indices then count the tokens of the whole image."""

    def cat(name: str) -> Tensor | None:
        tensors = [value for part in parts if (value := getattr(part, name)) is not None]
        return torch.cat(tensors) if len(tensors) == len(parts) else None

    indices = [torch.where(p.indices_K < 0, -1, p.indices_K + view * size) for view, p in enumerate(parts)]
    return Reduction(torch.cat(indices), cat("embeds_KD"), cat("hidden_KC"), cat("scores_N"))


def has_reduce(method: Method) -> bool:
    """Return True if a method decides before the LLM."""
    return type(method).reduce is not Method.reduce


def has_resize(method: Method) -> bool:
    """Return True if a method resizes the image before the tower."""
    return type(method).resize is not Method.resize


def build_unpruned_prompt(backbone: Backbone, method: Method, images: Sequence[Image], text: str, rule: Rule) -> Prompt:
    """Return the unpruned prompt, its images at the size the method wants.

    Args:
        backbone: preprocesses and tokenises.
        method: may resize.
        images: in the order of the conversation.
        text: the question.
        rule: the budget per image.
    """
    if not has_resize(method):
        return backbone.prompt(images, text)
    return backbone.prompt(images, text, [target_grid(method, backbone.grid(image), rule) for image in images])


def target_grid(method: Method, grid: tuple[int, int], rule: Rule) -> tuple[int, int]:
    """Return the grid of visual tokens that a method resizes an image to.

    Args:
        method: resizes.
        grid: rows and columns at the image's own size.
        rule: the budget per image.

    Raises:
        ValueError: the grid has more tokens than the budget (a bug in the method).
    """
    count = rule.budget.count(grid[0] * grid[1])
    rows, columns = method.resize(grid, Budget(count, rule.kind))
    if method.spends == "per-image" and rows * columns > count:
        raise ValueError(f"{type(method).__name__}.resize: {rows} x {columns} tokens for a budget of {count}")
    return rows, columns
