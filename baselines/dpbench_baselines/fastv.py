"""FastV (Chen et al., ECCV 2024, arXiv:2403.06764), section 4: one cut early in the LLM.

After K layers, drop the visual tokens the last prompt token attends to least. Training-free, inside the LLM.

Read against: pkunlp-icler/FastV @ fcd8ae1 (demo-hf.py), the transformers fork with its KV cache (`fastv_forward`)
Same as upstream:  rank = head mean of the last row of the attention layer K-1 computes, softmax over all keys; text
                   always stays; survivors keep order and position ids; decided once, in the prefill.
Differs:           the visual tokens are found in the prompt (upstream: 576 from slot 35); float32 scores, ties to the
                   earlier token; batches; several images are ranked jointly; AnyRes newlines are text.
Budget:            upstream gives a ratio R of what is dropped, M = round(N (1 - R)). Here M follows from the budget as
                   the mean over layers, T = (K N + (L - K) M) / L, as the published tables count; `ratio` is R, and
                   `preset=official` is K = 2, R = 0.5, whatever the budget.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, LayerView, Method, Spends


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Cut once, early in the LLM, by the last prompt token's attention one layer before (FastV).

    layer: K, how many layers read everything. Default None: a sixteenth of the depth (2 of 32), at least 1.
    ratio: R, the share dropped, whatever the budget. Default None: solved from the budget, or 0.5 (official).
    preset: "mean" meets the budget unless a ratio is given; "official" is K = 2 and R = 0.5 unless they are given.
    """

    positions: Literal["compact", "original"] = "original"
    layer: int | None = None
    ratio: float | None = None
    preset: Literal["mean", "official"] = "mean"

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise ConfigError(f"--param: fastv needs layer >= 1 (it ranks one layer before), got {self.layer}")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ConfigError(f"--param: fastv.ratio is the share dropped, 0 to 1, got {self.ratio}")

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a ratio given, or the official one, has a count of its own."""
        return "per-image" if self.preset == "mean" and self.ratio is None else "own"

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return the one cut, its size from the ratio, or solved from the budget."""
        layer = self.layer or (2 if self.preset == "official" else max(1, round(num_layers / 16)))
        if layer >= num_layers:
            raise ConfigError(f"--param: fastv.layer must be below the decoder's {num_layers} layers, got {layer}")
        if self.spends != "own":
            keep = solve_keep(num_visual, num_layers, layer, budget)
        else:
            keep = round(num_visual * (1 - (0.5 if self.ratio is None else self.ratio)))
        return (Cut(layer, keep, layer - 1),)

    def rank(self, view: LayerView) -> Tensor:
        """Score by the last row's head mean."""
        return view.attention()[:, 0].mean(0).index_select(0, view.visual_index_N)


def solve_keep(num_visual: int, num_layers: int, layer: int, budget: Budget) -> int:
    """Return M, what is kept from `layer` on, so that the budget is met.

    Raises:
        ConfigError: the layers before the cut alone read more than the budget's mean; names the reachable range.
    """
    count = min(budget.count, num_visual)
    if budget.kind == "final":
        return count
    keep = round((num_layers * count - layer * num_visual) / (num_layers - layer))
    if keep < 0:
        least = -(-layer * num_visual // num_layers)
        raise ConfigError(
            f"fastv: cannot reach a mean of {count} of {num_visual} visual tokens with a cut at layer {layer} of "
            f"{num_layers}; choose between {least} and {num_visual}, lower --param layer or use --budget-kind final"
        )
    return keep
