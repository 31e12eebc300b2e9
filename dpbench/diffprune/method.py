"""DiffPrune as it is deployed: one scorer pass, hard top-k, a gather. Throttler and denoiser are not even imported."""

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

    checkpoint: folder that `dpbench train` wrote; by default the scorer that ships for the backbone.
    graph: on a GPU, replay scorer and ranking as a CUDA graph, one per number of tokens and budget.
    """

    budgeted = True

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
                "--param checkpoint=untrained: its answers mean nothing, it is for profile and check only"
            )
        folder = checkpoints.find(self.checkpoint, backbone)
        checkpoints.check_pair(folder, checkpoints.read_card(folder, backbone))
        return folder / checkpoints.WEIGHTS, folder / checkpoints.CARD

    def untrained(self) -> DiffPrune:
        """Return a copy whose scorer has fresh weights, where no checkpoint was named."""
        return self if self.checkpoint else replace(self, checkpoint=UNTRAINED)

    def graphed(self) -> DiffPrune:
        """Return a copy that replays its scorer and ranking as a CUDA graph."""
        return replace(self, graph=True)

    def bind(self, backbone: Backbone) -> DiffPrune:
        """Return a copy that holds the scorer, on the backbone's device and in its type."""
        width = backbone.decoder.config.hidden_size
        if self.checkpoint == UNTRAINED:
            scorer = _fresh(ScorerSize(width=width))
        else:
            scorer = checkpoints.load(checkpoints.find(self.checkpoint, backbone.name), backbone.name, width)
        scorer = scorer.deployed(backbone.device, backbone.dtype)
        bound = copy.copy(self)
        object.__setattr__(bound, "scorer", scorer)
        object.__setattr__(bound, "graphs", {} if self.graph and backbone.device.type == "cuda" else None)
        object.__setattr__(bound, "num_views", 1 if backbone.max_views == 1 else None)
        return bound

    @torch.inference_mode()
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Score the tokens, view by view, and keep the highest, in their order (equation 3)."""
        views = self.num_views or int(visual.view_N[-1]) + 1
        inputs = *(_by_view(each, views) for each in (visual.embeds_ND, visual.row_N, visual.col_N)), visual.read_N
        if self.graphs is None:
            indices, scores = _ranked(self.scorer, keep, *inputs)
            return Reduction(indices, scores_N=scores)
        if keep not in self.graphs:
            self.graphs[keep] = Graphed(partial(_ranked, self.scorer, keep))
        indices, scores = (each.clone() for each in self.graphs[keep](*inputs))
        return Reduction(indices, scores_N=scores)


def _ranked(
    scorer: Scorer, keep: int, embeds: Tensor, row: Tensor, col: Tensor, read_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which tokens score highest, and all scores; embeddings, rows and columns are view by view."""
    scores = scorer(embeds, row, col).flatten()
    scores = scores.masked_fill(~read_N, torch.finfo(scores.dtype).min)
    return top_indices(scores, keep), scores


def _by_view(values_N: Tensor, num_views: int) -> Tensor:
    return values_N.view(num_views, -1, *values_N.shape[1:])


def _fresh(size: ScorerSize) -> Scorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scorer(size)
