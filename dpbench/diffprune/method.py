"""DiffPrune as deployed: one pass of the scorer, hard top-k, a gather. Throttler and denoiser are not imported."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dpbench.diffprune import checkpoint as checkpoints
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.errors import ConfigError
from dpbench.machine.cuda_graph import Graphed
from dpbench.method import Method, Reduction, VisualTokens, top_indices

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

UNTRAINED = "untrained"
"""In place of a checkpoint: fresh weights, for timing and conformance checks."""


@dataclass(frozen=True, kw_only=True)
class DiffPrune(Method):
    """Keep the tokens that a trained scorer ranks highest (DiffPrune).

    checkpoint: folder that `dpbench train` wrote; by default the scorer that ships with dpbench for the backbone.
    graph: on a GPU, replay scorer and ranking as a CUDA graph, one per number of tokens and budget.
    """

    positions: Literal["compact", "original"] = "original"
    checkpoint: str | None = None
    graph: bool = False
    scorer: Any = field(default=None, init=False, repr=False, compare=False)
    num_views: int | None = field(default=None, init=False, repr=False, compare=False)
    graphs: Any = field(default=None, init=False, repr=False, compare=False)

    def files(self, backbone: str) -> tuple[Path, ...]:
        """Return the scorer's weights and card."""
        if self.checkpoint == UNTRAINED:
            raise ConfigError(
                "--param checkpoint=untrained: its answers mean nothing; use it with profile and check only"
            )
        folder = checkpoints.find(self.checkpoint, backbone)
        checkpoints.check_pair(folder, checkpoints.read_card(folder, backbone))
        return folder / checkpoints.WEIGHTS, folder / checkpoints.CARD

    def untrained(self) -> DiffPrune:
        """Return a copy whose scorer has fresh weights, unless a checkpoint was named."""
        return self if self.checkpoint else replace(self, checkpoint=UNTRAINED)

    def graphed(self) -> DiffPrune:
        """Return a copy that replays its scorer and ranking as a CUDA graph."""
        return replace(self, graph=True)

    def bind(self, backbone: Backbone) -> DiffPrune:
        """Return a copy that holds the scorer, on the backbone's device and in its type."""
        width = backbone.decoder.config.hidden_size
        if self.checkpoint == UNTRAINED:
            scorer = _build_untrained(ScorerSize(width=width))
        else:
            scorer = checkpoints.load(checkpoints.find(self.checkpoint, backbone.name), backbone.name, width)
        scorer = scorer.deploy(backbone.device, backbone.dtype)
        bound = copy.copy(self)
        object.__setattr__(bound, "scorer", scorer)
        object.__setattr__(bound, "graphs", {} if self.graph and backbone.device.type == "cuda" else None)
        object.__setattr__(bound, "num_views", 1 if backbone.max_views == 1 else None)
        return bound

    @torch.inference_mode()
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Score the tokens view by view and keep the highest, in their order (equation 3)."""
        views = self.num_views or int(visual.view_N[-1]) + 1
        fields = (visual.embeds_ND, visual.row_N, visual.col_N)
        inputs = *(_by_view(field, views) for field in fields), visual.read_N
        if self.graphs is None:
            indices, scores = _rank(self.scorer, keep, *inputs)
            return Reduction(indices, scores_N=scores)
        if keep not in self.graphs:
            self.graphs[keep] = Graphed(partial(_rank, self.scorer, keep))
        # a graph writes every result into the same memory
        indices, scores = (result.clone() for result in self.graphs[keep](*inputs))
        return Reduction(indices, scores_N=scores)


def _rank(scorer: Scorer, keep: int, embeds: Tensor, row: Tensor, col: Tensor, read_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the highest-scoring tokens, and all scores; the fields are (view, token, ...)."""
    scores = scorer(embeds, row, col).flatten()
    scores = scores.masked_fill(~read_N, torch.finfo(scores.dtype).min)
    return top_indices(scores, keep), scores


def _by_view(values_N: Tensor, num_views: int) -> Tensor:
    return values_N.view(num_views, -1, *values_N.shape[1:])


def _build_untrained(size: ScorerSize) -> Scorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scorer(size)
