"""Is a difference more than noise? A paired bootstrap over images, re-running each benchmark's own aggregator.

R resamples, C clusters (images), T ratios of a score. In a resample the images of a benchmark are drawn with
replacement and come with all their questions, for all methods alike: the comparison is paired, and questions on one
image are not counted as independent (cluster bootstrap: Davison and Hinkley, Bootstrap Methods, section 3.8).
Intervals are percentiles. A p-value is the larger of two: the share of resamples on the other side of zero, so that it
never contradicts its interval, and that of a normal distribution with the bootstrap's standard error, because a share
cannot get below 1 / R and Holm's correction (1979) multiplies it by the number of comparisons. No torch, no pandas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import erfc, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpbench.tasks import aggregators
from dpbench.tasks.aggregators import Sums

RESAMPLES = 10_000
LEVEL = 0.95
Z = 1.959964
"""The 97.5th percentile of the normal distribution: a 95 % interval is as many standard errors to either side."""
_BLOCK = 1 << 18
"""Entries of one block of weights: 2 MB of float64, so that a block stays in the cache for all methods."""

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Difference:
    """An estimate with its interval.

    Attributes:
        value: on the samples themselves, in points.
        low: 2.5th percentile of the resamples.
        high: 97.5th percentile.
        p: two-sided, of there being no difference; not corrected.
    """

    value: float
    low: float
    high: float
    p: float


def weights(num_clusters: int, resamples: int, seed: str) -> Iterator[NDArray[np.float64]]:
    """Yield how often each cluster was drawn, (rows, C), block by block, until there are `resamples` rows.

    Args:
        num_clusters: C.
        resamples: R.
        seed: the same text draws the same; benchmarks on the same images share it.
    """
    generator = np.random.default_rng(int.from_bytes(sha256(seed.encode()).digest()[:8]))
    size = max(1, _BLOCK // num_clusters)
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.integers(num_clusters, size=(rows, num_clusters), dtype=np.int32)
        # Offset every row's numbers, so that one bincount counts all rows at once.
        drawn += np.arange(rows, dtype=np.int32)[:, None] * np.int32(num_clusters)
        counts = np.bincount(drawn.ravel(), minlength=rows * num_clusters)
        yield counts.reshape(rows, num_clusters).astype(np.float64)


def resample(cells: Mapping[Name, Sums], seed: str, resamples: int = RESAMPLES) -> dict[Name, NDArray[np.float64]]:
    """Return every cell's score on the same resamples: (R,) each, 0-100.

    Args:
        cells: of one benchmark, all over the same clusters in the same order.
        seed: see `weights`.
        resamples: R.

    Raises:
        ValueError: the cells' clusters differ.
    """
    if len({sums.clusters for sums in cells.values()}) > 1:
        raise ValueError("a paired bootstrap needs the same clusters in all cells")
    num_clusters = len(next(iter(cells.values())).clusters)
    blocks: dict[Name, list[NDArray[np.float64]]] = {name: [] for name in cells}
    for block_RC in weights(num_clusters, resamples, seed):
        for name, sums in cells.items():
            blocks[name].append(aggregators.score(sums, block_RC))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def standard_error(sums: Sums) -> float | None:
    """Return the standard error of a score, in points, by linearising its ratios over clusters; None of one cluster.

    In closed form, so that it costs nothing where only one interval is asked for (Cochran, Sampling Techniques,
    section 6.4).
    """
    num_clusters, asked_T = len(sums.clusters), sums.denominator_CT.sum(0)
    if num_clusters < 2:
        return None
    ratio_T = np.divide(sums.numerator_CT.sum(0), asked_T, out=np.zeros_like(asked_T), where=asked_T > 0)
    counts_T = asked_T > 0
    residual_CT = (sums.numerator_CT - ratio_T * sums.denominator_CT)[:, counts_T] / asked_T[counts_T]
    residual_C = residual_CT.sum(1) / max(1, int(counts_T.sum()))
    return 100 * sqrt(num_clusters / (num_clusters - 1) * float((residual_C**2).sum()))


def difference(value: float, resampled_R: NDArray[np.float64], num_clusters: int) -> Difference | None:
    """Return a difference with its interval; None of one image, or where a resample has no value (a score of 0).

    Args:
        value: the difference on the samples themselves.
        resampled_R: the same difference on every resample.
        num_clusters: images it rests on; no paired test can be surer than all of them agreeing by chance.
    """
    if num_clusters < 2 or not np.isfinite(resampled_R).all() or not np.isfinite(value):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled_R, [tail, 100 - tail])
    error = float(resampled_R.std(ddof=1))
    # A share of resamples cannot get below 1 / R, and Holm's correction multiplies it: the normal tail can. The share
    # is kept as a floor, so that no p-value contradicts its interval.
    normal = erfc(abs(value) / error / sqrt(2)) if error > 0 else float(value == 0)
    tails = 2 * min(float((resampled_R <= 0).mean()), float((resampled_R >= 0).mean()))
    # With n images a sign test's smallest two-sided p-value is 2 ** (1 - n): few images cannot prove more.
    p = min(1.0, max(normal, tails, 2.0 ** (1 - num_clusters)))
    return Difference(float(value), float(low), float(high), p)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p-values corrected for their number (Holm 1979): step down, never falling, at most 1."""
    ordered: Sequence[tuple[Name, float]] = sorted(p_values.items(), key=lambda item: item[1])
    corrected, highest = {}, 0.0
    for at, (name, p) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - at) * p))
        corrected[name] = highest
    return corrected
