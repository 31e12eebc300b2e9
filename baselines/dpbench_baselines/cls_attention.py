"""FasterVLM (Zhang et al. 2024, arXiv:2412.01818): [CLS] attention ranks the visual tokens.

Keep the tokens the vision tower's CLS token attends to most at the select layer. Training-free, before the LLM.

Read against: Theia-4869/FasterVLM @ f5d5f12
Same as upstream:  head mean of the CLS row at the select layer (softmax over all keys, CLS included, not renormalised);
                   tokens are projected first; survivors keep raster order and are renumbered.
Differs:           ties go to the earlier token (upstream leaves them to topk).
"""

from dataclasses import dataclass

from dpbench.errors import UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens, top_indices


@dataclass(frozen=True, kw_only=True)
class CLSAttention(Method):
    """Keep the tokens that the vision tower's CLS token attends to most (FasterVLM)."""

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the CLS row of the select layer."""
        if "cls_attention" not in provides:
            raise UnsupportedError("cls-attention needs a vision tower with a CLS token, and this backbone has none")
        return frozenset({"cls_attention"})

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Rank by the head mean of the CLS row."""
        scores_N = visual.cls_attention[max(visual.cls_attention)].mean(0)
        return Reduction(top_indices(scores_N, keep), scores_N=scores_N)
