"""A method as another package would bring it: this file and an entry point are all."""

from dataclasses import dataclass

import torch

from dpbench.method import Method, Reduction, VisualTokens


@dataclass(frozen=True, kw_only=True)
class FirstRow(Method):
    """Keep the first tokens in reading order."""

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Take the first `keep`."""
        return Reduction(torch.arange(keep, device=visual.embeds_ND.device))
