"""CDPruner (Zhang et al., NeurIPS 2025, arXiv:2506.10967): a determinantal point process conditioned on the question.

A token is worth what the question makes it relevant, times how little it repeats what was picked before. Training-free,
before the LLM, after the projector.

Read against: Theia-4869/CDPruner @ 9541616 (llava_arch.py, `encode_images`)
Same as upstream:  kernel rel_i cos(x_i, x_j) rel_j over projected tokens; relevance is minus the cosine of the patch in
                   CLIP's image-text space to the question in it, mean over pieces of 77 text tokens, brought to 0..1
                   over all views together; greedy MAP by the incremental Cholesky, view by view; raster order (base,
                   then the tiles' canvas, no newlines), renumbered.
Differs:           where nothing but rounding is left (blank images, more tokens than dimensions) the rest goes by
                   relevance (upstream: NaN); what unpadding drops takes no part; a relevance that is the same for all
                   tokens is 1; a budget that the views do not divide gives the first ones one more.
Second model:      the text tower, both projections and the vision tower's last norm come from the CLIP checkpoint that
                   the backbone's tower was taken from (`clip`); `bind` loads it. A backbone whose tower never had a
                   text tower, toy-llava's, is refused. Not CDPruner as published: `relevance=words` compares projected
                   tokens with the question's words in the LLM's embedding space (plus the cosine), `relevance=none` is
                   the process without a question.

Shape letters: V views, N tokens of a view, K picked of a view, D the LLM's width, E the shared space's, M pieces of
text, T text tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import spstrf
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dpbench import backbones
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens
from dpbench_baselines.divprune import products

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

CLIP = "openai/clip-vit-large-patch14-336"
"""The model that LLaVA's vision tower was taken from."""
UNTRAINED = "untrained"
"""In place of a checkpoint: fresh weights, for timing and conformance checks."""
EPS = 1e-6
"""Keeps the least relevant token in the kernel, as upstream."""
FLOOR = 1e-6
"""Gains below this share of the largest possible one are float32's rounding."""
BLOCKED_FROM = 0.25
"""Share of a view from which on pivoting all of it takes less time than picking one by one."""
Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
OTHERS = (
    "--param relevance=words (the question's words in the LLM's embedding space) or relevance=none runs without one"
)


class Towers(Protocol):
    """Two towers that put patches and text into one space."""

    def image(self, visual: VisualTokens) -> Tensor:
        """Return the tokens of all views, (V N, E)."""
        ...

    def text(self, question: str) -> Tensor:
        """Return the question in pieces, (M, E)."""
        ...


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """Pick tokens that are relevant to the question and do not repeat each other (CDPruner).

    relevance: "clip" compares with the question in CLIP's space; "words" with its words in the LLM's embedding space;
        "none" takes every token for as relevant. Default "clip", as published.
    clip: folder or hub repository of the CLIP model with the text tower. Default None: openai's ViT-L/14 at 336.
    """

    anyres = "own"
    relevance: Literal["clip", "words", "none"] = "clip"
    clip: str | None = None
    relevance_of: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.clip is not None and self.relevance != "clip":
            raise ConfigError(f"--param: cdpruner.clip has no effect with relevance={self.relevance}; leave one out")

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for nothing but a CLIP tower where CLIP's space is used."""
        if self.relevance == "clip" and "cls_hidden_VC" not in provides:
            raise UnsupportedError(f"cdpruner needs a CLIP vision tower, and this backbone has none; {OTHERS}")
        return frozenset()

    def files(self, backbone: str) -> tuple[Path, ...]:
        """Return weights, configuration and tokenizer of the CLIP model."""
        if self.relevance != "clip":
            return ()
        if self.clip == UNTRAINED:
            raise ConfigError("--param clip=untrained: its answers mean nothing, it is for profile and check only")
        self._check_paired(backbone)
        from dpbench.backbones import clip_text  # loads transformers, which a run without CLIP does not need

        return clip_text.files(self.clip or CLIP)

    def _check_paired(self, backbone: str) -> None:
        family = backbones.FAMILIES.get(backbone)
        if self.clip is None and family is not None and family.weights.startswith("package:"):
            raise UnsupportedError(f"cdpruner: {backbone}'s vision tower never had a text tower; {OTHERS}")

    def untrained(self) -> CDPruner:
        """Return a copy whose text tower has fresh weights, where no CLIP model was named."""
        return self if self.clip or self.relevance != "clip" else replace(self, clip=UNTRAINED)

    def bind(self, backbone: Backbone) -> CDPruner:
        """Return a copy that holds the text tower, on the backbone's device and in float32."""
        if self.relevance == "none":
            return self
        if self.relevance == "words":
            return self._with(lambda visual: word_relevance(backbone, visual))
        from dpbench.backbones import clip_text

        if self.clip == UNTRAINED:
            return self.comparing(clip_text.build_untrained(backbone))
        self._check_paired(backbone.name)
        return self.comparing(clip_text.load(self.clip or CLIP, backbone))

    def comparing(self, towers: Towers) -> CDPruner:
        """Return a copy whose relevance is minus the cosine in the space of these towers."""
        return self._with(lambda visual: -mean_cosine(towers.image(visual), towers.text(visual.question)))

    def _with(self, relevance_of: Callable[[VisualTokens], Tensor]) -> CDPruner:
        bound = copy.copy(self)
        object.__setattr__(bound, "relevance_of", relevance_of)
        return bound

    @torch.inference_mode()
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Pick in all views at once, as many in each."""
        num_views = int(visual.view_N[-1]) + 1
        relevance_N = unit_range(self._raw_relevance(visual), visual.read_N)
        scaled_ND = normalize(visual.embeds_ND.float(), dim=-1) * relevance_N[:, None]
        scaled, relevance, read = (
            values.unflatten(0, (num_views, -1)) for values in (scaled_ND, relevance_N, visual.read_N)
        )
        picks_VK = greedy_map(products(scaled), relevance, read, -(-keep // num_views))
        if keep % num_views:
            picks_VK[keep % num_views :, -1] = -1
        offsets = torch.arange(num_views, device=picks_VK.device)[:, None] * scaled.shape[1]
        indices_K = (picks_VK + offsets).flatten()
        if num_views > 1:
            indices_K = indices_K[(picks_VK >= 0).flatten()]
        return Reduction(indices_K[visual.slot_N[indices_K].argsort(stable=True)], scores_N=relevance_N)

    def _raw_relevance(self, visual: VisualTokens) -> Tensor:
        if self.relevance == "none":
            return torch.zeros(len(visual), device=visual.embeds_ND.device)
        if self.relevance_of is None:
            raise ConfigError(
                f"cdpruner with relevance={self.relevance} compares with the question after bind(backbone)"
            )
        raw_N: Tensor = self.relevance_of(visual)
        return raw_N.to(visual.embeds_ND.device, torch.float32)


def mean_cosine(tokens_NE: Tensor, text_ME: Tensor) -> Tensor:
    """Return each token's cosine similarity to the pieces of text, their mean, float32 (N,)."""
    return (normalize(tokens_NE.float(), dim=-1) @ normalize(text_ME.float(), dim=-1).T).mean(-1)


def unit_range(raw_N: Tensor, read_N: Tensor) -> Tensor:
    """Bring relevance to 0..1 over the tokens that are read; one that is the same everywhere becomes 1."""
    low = raw_N.masked_fill(~read_N, torch.inf).amin()
    high = raw_N.masked_fill(~read_N, -torch.inf).amax()
    return ((raw_N - low + EPS) / (high - low).clamp(min=EPS)).masked_fill(~read_N, 0.0)


def greedy_map(kernel_VNN: Tensor, relevance_VN: Tensor, open_VN: Tensor, num: int) -> Tensor:
    """Return the greedy maximum a posteriori of each view's process, in the order of picking, int64 (V, K).

    Each pick adds the row of an incremental Cholesky factor; a token's gain is what is left of its diagonal. -1 stands
    where a view has nothing more to pick.

    Args:
        kernel_VNN: symmetric, its diagonal at most about 1.
        relevance_VN: at least 0, decides among tokens whose gain is lost in rounding.
        open_VN: bool, which tokens can be picked.
        num: K.
    """
    # what counts FLOPs sees the operators of torch only
    if kernel_VNN.is_cpu and kernel_VNN.dtype == torch.float32 and not is_in_torch_dispatch_mode():
        views = zip(kernel_VNN.numpy(), relevance_VN.float().numpy(), open_VN.numpy(), strict=True)
        return torch.from_numpy(np.stack([pick_in_view(kernel, rel, left, num) for kernel, rel, left in views]))
    rows = torch.arange(len(kernel_VNN), device=kernel_VNN.device)
    gain_VN = kernel_VNN.diagonal(dim1=-2, dim2=-1).masked_fill(~open_VN, -torch.inf)
    spare_VN = (FLOOR * relevance_VN.clamp(max=1.0)).masked_fill(~open_VN, -torch.inf)
    factor_VKN = kernel_VNN.new_empty(len(rows), num, kernel_VNN.shape[-1])
    picked, gains = [], []
    for step in range(num):
        gain_V, pick_V = torch.where(gain_VN > FLOOR, gain_VN, spare_VN).max(-1)
        before_VKN = factor_VKN[:, :step]
        row_V1N = torch.baddbmm(
            kernel_VNN[rows, pick_V][:, None], before_VKN[rows, :, pick_V][:, None], before_VKN, alpha=-1
        )
        inverse_V = torch.where(gain_V > FLOOR, gain_V.rsqrt(), 0.0)
        row_VN = torch.mul(row_V1N[:, 0], inverse_V[:, None], out=factor_VKN[:, step])
        gain_VN.addcmul_(row_VN, row_VN, value=-1)
        gain_VN[rows, pick_V] = spare_VN[rows, pick_V] = -torch.inf
        picked.append(pick_V)
        gains.append(gain_V)
    return torch.stack(picked, 1).masked_fill(torch.stack(gains, 1).isneginf(), -1)


def pick_in_view(kernel_NN: Floats, relevance_N: Floats, open_N: NDArray[np.bool_], num: int) -> Integers:
    """Return the picks of one view on a CPU, int64 (K,), -1 where there are no more.

    One step of the incremental factor takes numpy less than torch needs to begin one. Where much of the view is kept,
    LAPACK's Cholesky with complete pivoting makes the same picks in blocks; it has no rule for ties of equal tokens.

    Args:
        kernel_NN: symmetric.
        relevance_N: decides among tokens whose gain is lost in rounding.
        open_N: which tokens can be picked.
        num: K.
    """
    kernel_NN = np.where(open_N & open_N[:, None], kernel_NN, np.float32(0))
    is_large = num >= BLOCKED_FROM * len(kernel_NN) and len(np.unique(kernel_NN.sum(1))) == len(kernel_NN)
    picks = (_pick_in_blocks if is_large else _pick_one_by_one)(kernel_NN, num)
    if len(picks) < num:
        left_N = np.setdiff1d(np.flatnonzero(open_N), picks)
        by_relevance = left_N[np.argsort(-np.minimum(relevance_N[left_N], 1), kind="stable")]
        picks = np.concatenate([picks, by_relevance])[:num]
    return np.pad(picks, (0, num - len(picks)), constant_values=-1)


def _pick_one_by_one(kernel_NN: Floats, num: int) -> Integers:
    """Return the picks whose gain is above rounding, one row of the factor each."""
    gain_N = kernel_NN.diagonal().copy()
    factor_KN = np.empty((num, len(kernel_NN)), np.float32)
    picks: list[int] = []
    for step in range(num):
        pick = int(gain_N.argmax())
        gain = gain_N[pick]
        if gain <= FLOOR:
            break
        row_N = kernel_NN[pick] - factor_KN[:step, pick] @ factor_KN[:step]
        row_N *= 1 / np.sqrt(gain)
        factor_KN[step] = row_N
        gain_N -= row_N * row_N
        gain_N[pick] = -np.inf
        picks.append(pick)
    return np.array(picks, np.int64)


def _pick_in_blocks(kernel_NN: Floats, num: int) -> Integers:
    """Return the same picks as the pivots of a Cholesky factor; the kernel is overwritten."""
    if kernel_NN.diagonal().max() <= FLOOR:
        return np.empty(0, np.int64)
    _, pivots, rank, _ = spstrf(kernel_NN.T, tol=FLOOR, overwrite_a=1)
    picks: Integers = pivots[: min(rank, num)].astype(np.int64) - 1
    return picks


def word_relevance(backbone: Backbone, visual: VisualTokens) -> Tensor:
    """Return each projected token's mean cosine to the question's words as the LLM embeds them, (V N,)."""
    tokenizer = backbone.processor.tokenizer
    ids = tokenizer(visual.question, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    if not len(ids):
        return torch.zeros(len(visual), device=visual.embeds_ND.device)
    return mean_cosine(visual.embeds_ND, backbone.embed(ids.long()).to(visual.embeds_ND.device))
