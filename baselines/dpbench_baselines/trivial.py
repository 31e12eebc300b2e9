"""The baselines that read no content, which every method must beat before its ranking means anything."""

from dataclasses import dataclass

import torch

from dpbench.method import Method, Reduction, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep a uniformly random subset of the visual tokens."""

    budgeted = True

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Draw `keep` of N tokens without replacement, in reading order."""
        order = torch.randperm(len(visual), generator=visual.generator)
        return Reduction(order[:keep].sort().values.to(visual.embeds_ND.device))


@dataclass(frozen=True, kw_only=True)
class Grid(Method):
    """Keep an evenly spaced subset of the visual tokens in raster order."""

    budgeted = True

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Take the middle token of each of `keep` equal runs of the raster."""
        middles = (torch.arange(keep, device=visual.embeds_ND.device) * 2 + 1) * len(visual) // (2 * keep)
        return Reduction(middles)
