"""PyramidDrop (Xing et al., CVPR 2025, arXiv:2410.17247), section 3: several cuts, each keeping the same share.

At each stage drop the visual tokens the last instruction token attends to least. Training-free here, inside the LLM.

Read against: Cooperx521/PyramidDrop (`pdrop_rank_drop`, on transformers 4.37.2)
Same as upstream:  rank = head mean of the last row of a light attention made by the weights of the layer about to run,
                   softmax over all keys; n_i = int(N r_i) of the original count; each stage ranks the survivors of
                   the one before; survivors keep order and are renumbered without gaps after every cut.
Differs:           grouped-query decoders work (upstream: Llama only); one query row is projected, not all; float32
                   scores, ties to the earlier token; batches; several images jointly; AnyRes newlines are text; M-RoPE
                   positions are kept, as they cannot be renumbered.
Budget:            upstream cuts at layers 8, 16, 24 of 32 and halves each time (`preset=official`: mean 270 of 576).
                   The mean preset cuts at 2, 8, 16 of 32, scaled to the depth, and solves the ratio, as the author
                   advises (issue 29 upstream).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scipy.optimize import brentq
from torch import Tensor

from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, LayerView, Method

OF_LAYERS = 32
"""The depth that layer lists are given for."""


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Cut in stages down the LLM, by the last prompt token's attention at each (PyramidDrop).

    layers: where it cuts, for 32 layers; other depths scale. Default None: 2, 8, 16, or 8, 16, 24 (official).
    ratio: what each stage keeps of the one before. Default None: solved from the budget, or 0.5 (official).
    preset: "mean" meets the budget; "official" has its own layers and ratio whatever the budget.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    preset: Literal["mean", "official"] = "mean"

    def __post_init__(self) -> None:
        if self.layers is not None and not (
            self.layers and self.layers[0] >= 1 and all(a < b for a, b in pairwise(self.layers))
        ):
            raise ConfigError(f"--param: pyramiddrop.layers must rise from at least 1, got {list(self.layers)}")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ConfigError(f"--param: pyramiddrop.ratio is the share kept, 0 to 1, got {self.ratio}")

    @property
    def budgeted(self) -> bool:  # type: ignore[override]
        """Tell whether the budget is met: a ratio given, or the official one, has a count of its own."""
        return self.preset == "mean" and self.ratio is None

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return a cut per stage, their sizes from the ratio, or the ratio solved from the budget."""
        usual = (8, 16, 24) if self.preset == "official" else (2, 8, 16)
        layers = scaled(self.layers or usual, num_layers)
        if self.budgeted:
            keeps = solve_keeps(num_visual, num_layers, layers, budget)
        else:
            ratio = 0.5 if self.ratio is None else self.ratio
            keeps = [int(num_visual * ratio**stage) for stage in range(1, len(layers) + 1)]
        return tuple(Cut(layer, keep, layer) for layer, keep in zip(layers, keeps, strict=True))

    def rank(self, view: LayerView) -> Tensor:
        """Score by the last row's head mean."""
        return view.attention()[:, 0].mean(0).index_select(0, view.visual_index_N)


def scaled(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return a layer list for 32 layers at another depth.

    Raises:
        ConfigError: the decoder has too few layers to tell the stages apart.
    """
    found = tuple(max(1, round(layer * num_layers / OF_LAYERS)) for layer in layers)
    if not all(a < b for a, b in pairwise((*found, num_layers))):
        raise ConfigError(f"pyramiddrop: {num_layers} layers are too few for cuts at {list(layers)} of {OF_LAYERS}")
    return found


def solve_keeps(num_visual: int, num_layers: int, layers: tuple[int, ...], budget: Budget) -> list[int]:
    """Return what each stage keeps, n_i = int(N r^i), so that the budget is met.

    Raises:
        ConfigError: the layers before the first cut alone read more than the budget's mean; names what is in reach.
    """
    count, stages = min(budget.count, num_visual), range(1, len(layers) + 1)
    if budget.kind == "final":
        ratio = (count / num_visual) ** (1 / len(layers))
        return [*(int(num_visual * ratio**stage) for stage in stages[:-1]), count]
    spans = [b - a for a, b in pairwise((*layers, num_layers))]

    def excess(ratio: float) -> float:
        rest = sum(span * ratio**stage for span, stage in zip(spans, stages, strict=True))
        return (layers[0] + rest) / num_layers - count / num_visual

    if excess(0.0) > 0:
        least = -(-layers[0] * num_visual // num_layers)
        raise ConfigError(
            f"pyramiddrop: a mean of {count} of {num_visual} visual tokens is out of reach with a first cut at layer "
            f"{layers[0]} of {num_layers}; {least} to {num_visual} are in reach, or give --budget-kind final"
        )
    ratio = 1.0 if excess(1.0) <= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-12))
    return [int(num_visual * ratio**stage) for stage in stages]
