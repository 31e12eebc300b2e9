"""PyramidDrop (Xing et al., CVPR 2025, arXiv:2410.17247), section 3: several cuts, each keeping the same share.

At each stage drop the visual tokens the last instruction token attends to least. Training-free here, inside the LLM.

Read against: Cooperx521/PyramidDrop @ 3f89f94 (`pdrop_rank_drop`, on transformers 4.37.2)
Same as upstream:  rank = head mean of the last row of a light attention made by the weights of the layer about to run,
                   softmax over all keys; n_i = int(N r_i) of the original count; each stage ranks the survivors of
                   the one before; survivors keep order and are renumbered without gaps after every cut.
Differs:           grouped-query decoders work (upstream: Llama only); one query row is projected, not all; float32
                   scores, ties to the earlier token; batches; several images jointly; AnyRes newlines are text; M-RoPE
                   positions are kept, as they cannot be renumbered.
Budget:            upstream cuts before layers 8, 16, 24, of 32 as of 40, and halves each time (`preset=official`: mean
                   270 or 230 of 576; a decoder without a layer 24 gets the list for 32 scaled). The mean preset cuts
                   at 2, 8, 16 of 32, scaled to the depth, and solves the ratio, as the author advises (issue 29
                   upstream). `ratio` and `ratios` count whatever the budget.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scipy.optimize import brentq
from torch import Tensor

from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, LayerView, Method, Spends

OF_LAYERS = 32
"""The depth that the presets' layers are meant for."""
PRESETS = {"mean": (2, 8, 16), "official": (8, 16, 24)}
"""Where each preset cuts."""


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Cut in stages down the LLM, by the last prompt token's attention at each (PyramidDrop).

    layers: before which of the decoder's layers it cuts, as they are. Default None: the preset's, for its depth.
    ratio: what each stage keeps of the one before. Default None: solved from the budget, or 0.5 (official).
    ratios: in place of a ratio, what each stage keeps of all visual tokens, not rising, one for each layer.
    preset: "mean" meets the budget unless ratios are given; "official" has layers and ratio of its own.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    ratios: tuple[float, ...] | None = None
    preset: Literal["mean", "official"] = "mean"

    def __post_init__(self) -> None:
        if self.layers is not None and not (
            self.layers and self.layers[0] >= 1 and all(a < b for a, b in pairwise(self.layers))
        ):
            raise ConfigError(f"--param: pyramiddrop.layers must rise from at least 1, got {list(self.layers)}")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ConfigError(f"--param: pyramiddrop.ratio is the share kept, 0 to 1, got {self.ratio}")
        if self.ratios is not None:
            self._check_ratios(self.ratios)

    def _check_ratios(self, ratios: tuple[float, ...]) -> None:
        if self.ratio is not None:
            raise ConfigError("--param: pyramiddrop takes ratio (of the stage before) or ratios (of all), not both")
        if not all(a >= b for a, b in pairwise((1.0, *ratios, 0.0))):
            raise ConfigError(f"--param: pyramiddrop.ratios must fall from at most 1 to at least 0, got {list(ratios)}")
        layers = self.layers or PRESETS[self.preset]
        if len(ratios) != len(layers):
            raise ConfigError(
                f"--param: pyramiddrop.ratios needs one for each of {len(layers)} layers, got {len(ratios)}"
            )

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a ratio given, or the official one, has a count of its own."""
        return "per-image" if self.preset == "mean" and self.ratio is None and self.ratios is None else "own"

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return a cut per stage, their sizes from the ratios, or the ratio solved from the budget."""
        layers = self.layers or preset_layers(self.preset, num_layers)
        if layers[-1] >= num_layers:
            raise ConfigError(
                f"--param: pyramiddrop.layers must be below the decoder's {num_layers} layers, got {list(layers)}"
            )
        if self.spends != "own":
            keeps = solve_keeps(num_visual, num_layers, layers, budget)
        else:
            ratio = 0.5 if self.ratio is None else self.ratio
            ratios = self.ratios or [ratio**stage for stage in range(1, len(layers) + 1)]
            keeps = [int(num_visual * ratio) for ratio in ratios]
        return tuple(Cut(layer, keep, layer) for layer, keep in zip(layers, keeps, strict=True))

    def rank(self, view: LayerView) -> Tensor:
        """Score by the last row's head mean."""
        return view.attention()[:, 0].mean(0).index_select(0, view.visual_index_N)


def preset_layers(preset: str, num_layers: int) -> tuple[int, ...]:
    """Return where a preset cuts a decoder of some depth: scaled from 32 layers, one layer apart at least.

    The official list stays as it is where it fits.

    Raises:
        ConfigError: the decoder has too few layers to tell the stages apart.
    """
    layers = PRESETS[preset]
    if preset == "official" and layers[-1] < num_layers:
        return layers
    found: list[int] = []
    for layer in layers:
        found.append(max(round(layer * num_layers / OF_LAYERS), found[-1] + 1 if found else 1))
    if found[-1] >= num_layers:
        raise ConfigError(f"pyramiddrop: {num_layers} layers are too few for cuts at {list(layers)} of {OF_LAYERS}")
    return tuple(found)


def solve_keeps(num_visual: int, num_layers: int, layers: tuple[int, ...], budget: Budget) -> list[int]:
    """Return what each stage keeps, n_i = int(N r^i), so that the budget is met.

    Raises:
        ConfigError: the layers before the first cut alone read more than the budget's mean; names the reachable range.
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
            f"pyramiddrop: cannot reach a mean of {count} of {num_visual} visual tokens, as its first cut is at layer "
            f"{layers[0]} of {num_layers}; choose between {least} and {num_visual}, or use --budget-kind final"
        )
    ratio = 1.0 if excess(1.0) <= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-12))
    return [int(num_visual * ratio**stage) for stage in stages]
