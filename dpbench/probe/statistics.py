"""Coherence of gradients from their inner products, with intervals over batches.

Shape letter: B batches, one gradient each. G = the inner products of the gradients, (B, B), is all that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; infinite ends where the data do not bound it."""

    value: float
    low: float
    high: float


def unpack(triangle: tuple[float, ...]) -> Matrix:
    """Return the symmetric (B, B) matrix of a stored upper triangle, row by row with the diagonal."""
    size = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix: Matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return np.asarray(matrix + np.triu(matrix, 1).T)


def pack(matrix: Matrix) -> tuple[float, ...]:
    """Return the upper triangle of a symmetric matrix, row by row with the diagonal."""
    return tuple(float(value) for value in matrix[np.triu_indices(len(matrix))])


def cosines(gram: Matrix) -> Matrix:
    """Return the cosine of every pair, (B, B); 0 for a gradient that is zero."""
    norms = np.sqrt(np.diag(gram))
    scale = np.outer(norms, norms)
    return np.asarray(np.divide(gram, scale, out=np.zeros_like(gram), where=scale != 0))


def mean_cosine(gram: Matrix) -> float:
    """Return the mean cosine over pairs of different batches."""
    above = np.triu_indices(len(gram), 1)
    return float(cosines(gram)[above].mean())


def signal_to_noise(gram: Matrix) -> float:
    """Return |mean g|^2 over mean |g|^2: 1 if all gradients agree, about 1/B if they are independent."""
    return float(gram.mean() / np.diag(gram).mean())


def resampled_cosines(gram: Matrix, seed: int = 0) -> NDArray[np.float64]:
    """Return the mean cosine of bootstrap samples of batches; a batch never pairs with itself.

    There are `RESAMPLES` of them, less those that drew one batch only, the same for every matrix of a size.
    """
    rng, size, values = np.random.default_rng(seed), len(gram), cosines(gram)
    counts = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
    pairs = np.einsum("ri,ij,rj->r", counts, values - np.diag(np.diag(values)), counts)
    num = size**2 - (counts**2).sum(1)
    return np.asarray(pairs[num > 0] / num[num > 0])


def coherence(gram: Matrix) -> Interval:
    """Return the mean cosine with its bootstrap interval over batches."""
    low, high = np.quantile(resampled_cosines(gram), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean_cosine(gram), float(low), float(high))


def ratio(gram: Matrix, control: Matrix) -> Interval:
    """Return the ratio of two coherences over the same batches; unbounded where the control's interval holds 0."""
    above, below = resampled_cosines(gram), resampled_cosines(control)
    value = mean_cosine(gram) / mean_cosine(control) if mean_cosine(control) else float("nan")
    if np.quantile(below, (1 - LEVEL) / 2) <= 0:
        return Interval(value, -np.inf, np.inf)
    low, high = np.quantile(above / below, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mean_over(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the mean of values, one per batch or direction, with its bootstrap interval."""
    low, high = np.quantile(_resampled_means(values, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def ratio_of_means(above: NDArray[np.float64], below: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the ratio of two means of positive values over the same batches or directions, resampled in pairs."""
    draws = _resampled_means(above, seed) / _resampled_means(below, seed)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(above.mean() / below.mean()), float(low), float(high))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    chosen = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return np.asarray(values[chosen].mean(1))
