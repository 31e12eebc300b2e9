"""SparseVLM (Zhang et al., ICML 2025, arXiv:2410.04417): text that sees the image rates it, what is cut is recycled.

Text tokens whose embeddings the image's tokens match best are raters; after a few layers of the LLM the visual tokens
they attend to least are cut, and the better of those merged into a few rows. Training-free, inside the LLM.

Read against: Gumpest/SparseVLMs, main (score.py, utils.py, LLaVA files), whose modes "1_0" and "2_0" are v1 and v2 here
Same as upstream:  raters once, from the input embeddings, softmax over the text behind the image, above the mean; R =
                   mean over raters and heads of the causal attention of the layer whose output is cut (2, 6, 15);
                   int(0.3 d) + 1 of d cut tokens recycled into a tenth as many rows and one more, by density peaks;
                   kept rows in order, then merged ones. v1: renumbered after every cut, so that in decoding each layer
                   counts positions from the length of its own cache. v2: attention over the RoPE response of equal
                   vectors, 14 heads that see most, nothing merged, position ids kept.
Differs:           noise on the densities, below 1e-6, only with a `noise_seed` (upstream: always, unseeded); float32
                   scores; attention rows of the raters only, the layer itself stays on SDPA; distances from products in
                   float64, without a tensor of differences; where no text is above the mean all of it rates (upstream:
                   NaN); v2's response is at least a twentieth of that at distance 0, which heads of 128 pass below at a
                   thousand positions; batches; LLaVA-NeXT, newlines being text; M-RoPE positions are kept, a merged
                   row has those of the row before.
Budget:            upstream has four lists (192, 128, 96, 64) and counts a cut layer at what it puts out; it runs at
                   what it reads, a mean of 206.5, 145.4, 114.1, 82.2 over 32 layers (v1). `preset=official` is these
                   lists; the mean preset cuts behind the same layers, scaled to the depth, and multiplies the nearest
                   list's rows by what meets the budget. `schedule` counts whatever the budget.

Shape letters: L positions still there, N visual rows among them, T text behind the image, H heads, R raters, M recycled
tokens, G merged rows, D the LLM's width, d a head's width.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Budget, Cut, LayerView, Method, Reduction, Spends, top_indices
from dpbench.schedule import scaled_layers, solve_keeps

LAYERS = (2, 6, 15)
"""The layers of 32 whose output is cut."""
LISTS = {
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "v2": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Upstream's tokens kept behind each of them, by budget, without the merged rows."""
NUM_VISUAL = 576
"""What these are of."""
NOISE = 1e-6
COUNT_EPS = 1e-6
RESPONSE_FLOOR = 0.05


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Method):
    """Cut in stages what the image's own text attends to least, and merge the better part of it (SparseVLM).

    version: "v1" merges and renumbers; "v2" (SparseVLM+) corrects for distance, keeps positions and merges nothing.
    layers: the layers whose output is cut, as the decoder counts them. Default None: 2, 6, 15 of 32, for its depth.
    schedule: tokens kept behind each, without the merged rows. Default None: solved from the budget, or official.
    recycle_ratio: share of the cut tokens that is merged. Default 0.3.
    per_row: recycled tokens for one merged row. Default 10.
    num_heads: heads that count in v2. Default 14, at most all.
    noise_seed: seed of the noise on densities. Default None: no noise.
    preset: "mean" meets the budget unless a schedule is given; "official" has lists for 192, 128, 96 and 64.
    """

    positions: Literal["compact", "original"] = field(default="compact", init=False)
    version: Literal["v1", "v2"] = "v1"
    layers: tuple[int, ...] | None = None
    schedule: tuple[int, ...] | None = None
    recycle_ratio: float = 0.3
    per_row: int = 10
    num_heads: int = 14
    noise_seed: int | None = None
    preset: Literal["mean", "official"] = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", "compact" if self.version == "v1" else "original")
        layers, schedule = self.layers, self.schedule
        if layers is not None and not (layers and layers[0] >= 0 and all(a < b for a, b in pairwise(layers))):
            raise ConfigError(f"--param: sparsevlm.layers must rise from at least 0, got {list(layers)}")
        if schedule is not None and not all(a >= b for a, b in pairwise((*schedule, 0))):
            raise ConfigError(f"--param: sparsevlm.schedule must fall to at least 0, got {list(schedule)}")
        if schedule is not None and len(schedule) != len(layers or LAYERS):
            num = len(layers or LAYERS)
            raise ConfigError(f"--param: sparsevlm.schedule needs one for each of {num} layers, got {len(schedule)}")
        if not 0 <= self.recycle_ratio <= 1 or self.per_row < 1 or self.num_heads < 1:
            raise ConfigError(
                "--param: sparsevlm needs recycle_ratio of 0 to 1, per_row and num_heads of at least 1, got "
                f"{self.recycle_ratio}, {self.per_row}, {self.num_heads}"
            )

    @property
    def spends(self) -> Spends:  # type: ignore[override]
        """Hold to the budget for every image; a schedule given, or the official one, has a count of its own."""
        return "per-image" if self.preset == "mean" and self.schedule is None else "own"

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return a cut per stage: what it keeps, and how many rows it merges the rest into."""
        before = self._before(num_layers)
        if self.spends == "own":
            return self._cuts_of_kept(before, self.schedule or self._official(budget.count), num_visual)
        lists = LISTS[self.version]
        nearest = min(lists, key=lambda count: abs(count / NUM_VISUAL - budget.count / num_visual))
        if len(before) > len(lists[nearest]):
            raise ConfigError(f"--param: sparsevlm.layers beyond three need a schedule, got {list(self.layers or ())}")
        official = self._cuts_of_kept(before, lists[nearest][: len(before)], NUM_VISUAL)
        shape = {cut.layer: cut.keep / NUM_VISUAL for cut in official}
        totals = solve_keeps("sparsevlm", num_visual, num_layers, shape, budget)
        left = (num_visual, *totals[:-1])
        merged = [self._merged_of(*counts) for counts in zip(left, totals, strict=True)]
        rows = zip(before, totals, merged, strict=True)
        return tuple(Cut(layer, total, layer - 1, each) for layer, total, each in rows)

    def _before(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers before which it cuts."""
        before = tuple(layer + 1 for layer in self.layers or LAYERS)
        if self.layers is None and (self.spends != "own" or before[-1] >= num_layers):
            return scaled_layers("sparsevlm", before, num_layers)
        if before[-1] >= num_layers:
            raise ConfigError(
                f"--param: sparsevlm.layers must end before the last of {num_layers} layers, got {before[-1] - 1}"
            )
        return before

    def _cuts_of_kept(self, before: tuple[int, ...], kept_each: tuple[int, ...], num_visual: int) -> tuple[Cut, ...]:
        """Return the cuts that keep so many tokens each, all but one at most, and merge the rest."""
        cuts, left = [], num_visual
        for layer, wanted in zip(before, kept_each, strict=True):
            kept = max(0, min(wanted, left - 1))
            merged = self.num_merged(left - kept)
            left = kept + merged
            cuts.append(Cut(layer, left, layer - 1, merged))
        return tuple(cuts)

    def _official(self, count: int) -> tuple[int, ...]:
        """Return upstream's list for a budget, as far as the layers asked for."""
        lists, wanted = LISTS[self.version], self.layers or LAYERS
        if count not in lists:
            raise ConfigError(f"sparsevlm: preset=official has lists for 192, 128, 96 and 64 tokens, not {count}")
        unknown = [layer for layer in wanted if layer not in LAYERS]
        if unknown:
            raise ConfigError(
                f"--param: sparsevlm.preset=official is for layers 2, 6 and 15, not {unknown[0]}; give a schedule"
            )
        return tuple(kept for layer, kept in zip(LAYERS, lists[count], strict=True) if layer in wanted)

    def num_recycled(self, num_cut: int) -> int:
        """Return how many of the tokens cut are merged (v1)."""
        return int(self.recycle_ratio * num_cut) + 1

    def num_merged(self, num_cut: int) -> int:
        """Return into how many rows they are merged: none in v2."""
        return 0 if self.version == "v2" or not num_cut else self.num_recycled(num_cut) // self.per_row + 1

    def _merged_of(self, left: int, total: int) -> int:
        """Return how many of `total` rows are merged ones, so that most are tokens as they are."""
        if total >= left:
            return 0
        fitting = (kept for kept in range(total, -1, -1) if kept + self.num_merged(left - kept) <= total)
        return total - next(fitting, 0)

    def rank(self, view: LayerView) -> Tensor:
        """Score by the raters' attention, (N,), in v2 of fewer heads and corrected for distance."""
        prompt = view.prompt
        behind = prompt.text_index[prompt.text_index > prompt.visual_index_N[-1]]
        if not len(behind):
            raise UnsupportedError("sparsevlm: no text follows the image to rate it; put the question behind it")
        chosen_T = raters(prompt.embeds_LD[prompt.visual_index_N], prompt.embeds_LD[behind])
        rows_R = view.text_index[-len(behind) :][chosen_T]
        attention_HRN = view.attention(rows_R).index_select(-1, view.visual_index_N)
        if self.version == "v1":
            return attention_HRN.mean((0, 1))
        corrected_HRN = attention_HRN / rope_response(view.angles, rows_R, view.visual_index_N)
        return seeing_heads(corrected_HRN, self.num_heads).mean((0, 1))

    def select(self, view: LayerView) -> Reduction:
        """Keep the best by their rating, in order, and behind them what the next best are merged into."""
        num, kept = len(view.visual_index_N), view.cut.keep - view.cut.merged
        if kept >= num or not view.cut.keep:
            return Reduction(torch.arange(min(kept, num), device=view.visual_index_N.device))
        scores_N = self.rank(view)
        kept_K = top_indices(scores_N, kept)
        if not view.cut.merged:
            return Reduction(kept_K, scores_N=scores_N)
        recycled_M = recycled(scores_N, kept, self.num_recycled(num - kept))
        states_ND = view.hidden_LD[view.visual_index_N]
        rows_GD = self.merge(states_ND[recycled_M], view.cut.merged, view.stage)
        indices_K = torch.cat([kept_K, kept_K.new_full((view.cut.merged,), -1)])
        return Reduction(indices_K, torch.cat([states_ND[kept_K], rows_GD.to(states_ND.dtype)]), scores_N=scores_N)

    def merge(self, states_MD: Tensor, num: int, stage: int) -> Tensor:
        """Return `num` rows that M states are merged into, (G, D); at least float32."""
        states_MD = states_MD.to(torch.promote_types(states_MD.dtype, torch.float32))
        noise_M = None
        if self.noise_seed is not None:
            draw = torch.Generator().manual_seed(self.noise_seed + stage)
            noise_M = NOISE * torch.rand(len(states_MD), generator=draw).to(states_MD.device)
        return cluster_means(states_MD, density_peaks(states_MD, num, noise_M))


def raters(visual_ND: Tensor, text_TD: Tensor) -> Tensor:
    """Return which text the image's tokens match better than its mean, bool (T,); all of it if it is all the same."""
    match_T = (visual_ND.float() @ text_TD.float().T).softmax(-1).mean(0)
    chosen_T = match_T > match_T.mean()
    return chosen_T | ~chosen_T.any()


def rope_response(angles: tuple[Tensor, Tensor], rows_R: Tensor, columns_N: Tensor) -> Tensor:
    """Return the product of equal vectors (all ones, over the root of d) turned to rows and columns, (R, N).

    Args:
        angles: cosines and sines of all positions, (L, d) each, the halves alike.
        rows_R: int64 positions.
        columns_N: int64 positions.
    """
    width = angles[0].shape[-1]
    products = [turned[rows_R].float() @ turned[columns_N].float().T for turned in angles]
    response_RN = (products[0] + products[1]) / float(width**0.5)
    return response_RN.clamp(min=RESPONSE_FLOOR * float(width**0.5))


def seeing_heads(attention_HRN: Tensor, num: int) -> Tensor:
    """Return the attention of the `num` heads whose raters see most of the image, (num, R, N)."""
    return attention_HRN[top_indices(attention_HRN.sum((1, 2)), num)]


def recycled(scores_N: Tensor, kept: int, num: int) -> Tensor:
    """Return which tokens come next behind the `kept` best, `num` of them, rising, int64 (M,)."""
    order_N = torch.argsort(scores_N.float(), descending=True, stable=True)
    return order_N[kept : kept + num].sort().values


@dataclass(frozen=True, slots=True)
class Clusters:
    """Points in clusters around some of them.

    Attributes:
        centre_G: int64, each cluster's centre, best first.
        cluster_M: int64, each point's cluster.
    """

    centre_G: Tensor
    cluster_M: Tensor


def density_peaks(states_MD: Tensor, num: int, noise_M: Tensor | None = None) -> Clusters:
    """Cluster points around those that are dense and far from denser ones.

    A point's density is exp(-mean square of its `num` smallest distances, that to itself included); what it is
    multiplied with is the distance to the nearest denser point, or for the densest the largest distance of all.

    Args:
        states_MD: at least float32.
        num: G, at most M.
        noise_M: added to the densities.
    """
    distance_MM = distances(states_MD) / states_MD.shape[1] ** 0.5
    density_M = (-distance_MM.topk(num, largest=False).values.square().mean(-1)).exp()
    if noise_M is not None:
        density_M = density_M + noise_M
    denser_MM = density_M[None] > density_M[:, None]
    parent_M = torch.where(denser_MM, distance_MM, distance_MM.max()).amin(-1)
    centre_G = torch.argsort(parent_M * density_M, descending=True, stable=True)[:num]
    cluster_M = distance_MM[:, centre_G].argmin(-1)
    return Clusters(centre_G, cluster_M.index_copy(0, centre_G, torch.arange(num, device=centre_G.device)))


def distances(states_MD: Tensor) -> Tensor:
    """Return Euclidean distances, (M, M) float64, from products of centred states.

    In float64 what the subtraction loses is less than float32's rounding of a sum of D squares, and a product takes a
    fraction of the time of M * M differences. Symmetric to the last bit, or neighbours of each other would not tie.
    """
    centred_MD = states_MD.double() - states_MD.double().mean(0)
    products_MM = centred_MD @ centred_MD.T
    squares_M = products_MM.diagonal()
    squared_MM = squares_M[:, None] + squares_M - (products_MM + products_MM.T)
    return squared_MM.clamp(min=0).fill_diagonal_(0).sqrt()


def cluster_means(states_MD: Tensor, clusters: Clusters) -> Tensor:
    """Return each cluster's mean, its size taken for a millionth larger than it is, (G, D)."""
    sums_GD = states_MD.new_zeros(len(clusters.centre_G), states_MD.shape[1])
    sums_GD = sums_GD.index_add(0, clusters.cluster_M, states_MD)
    sizes_G = torch.zeros_like(sums_GD[:, 0]).index_add(0, clusters.cluster_M, torch.ones_like(states_MD[:, 0]))
    means_GD: Tensor = sums_GD / (sizes_G[:, None] + COUNT_EPS)
    return means_GD
