"""DART (Wen et al., EMNLP 2025, arXiv:2502.11494): keep what repeats a few pivots the least.

After K layers, pivots are the visual and the text tokens with the largest keys; each keeps the visual tokens that are
least similar to it. Training-free, inside the LLM, without attention maps.

Read against: ModelTC/LightCompress (dart.py), DART's own scripts for its constants; the authors' repository was not to
be had
Same as upstream:  K = 2, four pivots of each kind by the L1 norm of the key that layer K-1 put into the cache; text
                   pivots from all text behind the image; cosine in the input of layer K after the decoder's last norm;
                   pivots take their shares one after another, in the order in which Python iterates over a set of their
                   positions, and what one took is gone for the next; survivors keep their position ids.
Differs:           key norms, cosines and ranks in float32, ties to the earlier token; batches; several images jointly;
                   AnyRes newlines are text.
Budget:            upstream keeps pi + (pi + pt) t tokens behind the cut, t rounded down: 60 for 64, 124 for 128, 188
                   for 192. So here, of what the budget's mean over layers (or its final count) leaves behind the cut;
                   `exact` gives the first pivots one more each until nothing is left over. `preset=official` is K = 2
                   and reads the budget as the count behind the cut; `ratio` is upstream's reduction ratio.

Shape letters: L positions still there, N visual ones among them, P pivots, T text behind the image, D the LLM's width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dpbench.errors import ConfigError
from dpbench.method import Budget, Cut, LayerView, Method, Reduction, Spends
from dpbench.schedule import scaled_layers, solve_keeps

LAYER = 2
"""K of a decoder of 32 layers."""
EPS = 1e-8
"""Norms below this count as this, as in torch's cosine similarity."""


@dataclass(frozen=True, kw_only=True)
class DART(Method):
    """Keep the visual tokens that are least similar to a few pivots with large keys (DART).

    layer: K, how many layers read everything. Default None: a sixteenth of the depth (2 of 32), at least 1.
    pivot_image: pivots among the visual tokens, which are kept. Default 4.
    pivot_text: pivots among the text behind the image. Default 4.
    ratio: the share dropped, before rounding, whatever the budget. Default None: solved from the budget.
    exact: fill up to the budget what equal shares for the pivots leave over. Default false.
    preset: "mean" stays within the budget; "official" is K = 2, the budget being what is left behind the cut.
    """

    positions: Literal["compact", "original"] = "original"
    layer: int | None = None
    pivot_image: int = 4
    pivot_text: int = 4
    ratio: float | None = None
    exact: bool = False
    preset: Literal["mean", "official"] = "mean"

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise ConfigError(f"--param: dart needs layer >= 1 (it reads the keys of the one before), got {self.layer}")
        if self.pivot_image < 1 or self.pivot_text < 0:
            raise ConfigError(
                f"--param: dart needs pivot_image >= 1 and pivot_text >= 0, got {self.pivot_image}, {self.pivot_text}"
            )
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ConfigError(f"--param: dart.ratio is the share dropped, 0 to 1, got {self.ratio}")
        if self.ratio is not None and self.exact:
            raise ConfigError("--param: dart takes ratio (a count of its own) or exact (the budget's), not both")

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a ratio and "official" have counts of their own."""
        return "per-image" if self.ratio is None and self.preset == "mean" else "own"

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return the one cut, its size in whole shares for the pivots unless `exact`."""
        official = LAYER if self.preset == "official" else None
        layer = self.layer or official or scaled_layers("dart", (LAYER,), num_layers)[0]
        if layer >= num_layers:
            raise ConfigError(f"--param: dart.layer must be below the decoder's {num_layers} layers, got {layer}")
        num_pivots = self.pivot_image + self.pivot_text
        if self.ratio is not None:
            keep = self.pivot_image + num_pivots * int(num_visual * (1 - self.ratio) / num_pivots)
            return (Cut(layer, min(keep, num_visual), layer - 1),)
        kind = "final" if self.preset == "official" else budget.kind
        (keep,) = solve_keeps("dart", num_visual, num_layers, {layer: 1.0}, Budget(budget.count, kind))
        if not self.exact and self.pivot_image < keep < num_visual:
            keep -= (keep - self.pivot_image) % num_pivots
        return (Cut(layer, keep, layer - 1),)

    def select(self, view: LayerView) -> Reduction:
        """Choose the pivots by their keys, then let each take what is least similar to it."""
        visual, text = view.visual_index_N, view.text_index
        keep = min(view.cut.keep, len(visual))
        if not keep:
            return Reduction(visual[:0])
        norms_L = view.keys_HLd.float().abs().sum((0, 2))
        image_P = largest(norms_L, visual, min(self.pivot_image, keep))
        text_P = largest(norms_L, text[text > visual[-1]], self.pivot_text)
        pivots_P = torch.tensor(set_order(image_P.tolist(), text_P.tolist()), device=visual.device)
        cosine_PN = cosines(*(view.final_norm(view.hidden_LD[index]) for index in (pivots_P, visual)))
        taken_N = torch.isin(visual, image_P)
        for picked in least_similar(cosine_PN, taken_N, shares(keep - len(image_P), len(pivots_P))):
            taken_N[picked] = True
        return Reduction(torch.argsort(~taken_N, stable=True)[:keep])


def largest(norms_L: Tensor, index_M: Tensor, num: int) -> Tensor:
    """Return those of some positions that have the `num` largest norms, largest first, int64 (at most num,)."""
    return index_M[torch.argsort(norms_L[index_M], descending=True, stable=True)[:num]]


def set_order(image: list[int], text: list[int]) -> list[int]:
    """Return pivots in the order in which upstream's loop meets them: CPython's over a set built in this order."""
    return list(set([*image, *text]))


def cosines(pivots_PD: Tensor, tokens_ND: Tensor) -> Tensor:
    """Return each pivot's cosine similarity to each token, float32 (P, N)."""
    return normalize(pivots_PD.float(), dim=-1, eps=EPS) @ normalize(tokens_ND.float(), dim=-1, eps=EPS).T


def shares(num: int, num_pivots: int) -> list[int]:
    """Split `num` tokens over the pivots equally, the first ones one more if it does not divide."""
    return [num // num_pivots + (pivot < num % num_pivots) for pivot in range(num_pivots)]


def least_similar(cosine_PN: Tensor, taken_N: Tensor, shares_P: list[int]) -> list[Tensor]:
    """Return what each pivot takes, the least similar first: int64, one tensor per pivot.

    Args:
        cosine_PN: pivots in the order in which they take.
        taken_N: bool, tokens that are no candidates.
        shares_P: how many each takes, of what the pivots before it left; in all at most the candidates.
    """
    taken_N, picks = taken_N.clone(), []
    for cosine_N, share in zip(cosine_PN, shares_P, strict=True):
        picks.append(torch.argsort(cosine_N.masked_fill(taken_N, torch.inf), stable=True)[:share])
        taken_N[picks[-1]] = True
    return picks
