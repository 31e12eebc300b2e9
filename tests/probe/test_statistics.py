"""Coherence and its intervals against gradients whose answers are known."""

import numpy as np
import pytest

from dpbench.probe.statistics import coherence, cosines, mean_cosine, pack, ratio, signal_to_noise, unpack


def gram_of(*gradients: list[float]) -> np.ndarray:
    rows = np.array(gradients, dtype=np.float64)
    return rows @ rows.T


def test_a_triangle_is_stored_and_read_back() -> None:
    gram = gram_of([1, 2], [3, 4], [5, 6])
    assert pack(gram) == (5, 11, 17, 25, 39, 61)
    assert np.array_equal(unpack(pack(gram)), gram)


def test_the_mean_cosine_is_over_pairs_and_does_not_know_lengths() -> None:
    gram = gram_of([1, 0], [0, 5], [-3, 0])
    assert cosines(gram).tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    assert mean_cosine(gram) == pytest.approx(-1 / 3)


def test_a_gradient_that_is_zero_agrees_with_none() -> None:
    assert mean_cosine(gram_of([1, 0], [0, 0])) == 0


def test_signal_to_noise_is_one_for_equal_gradients_and_one_in_b_for_orthogonal_ones() -> None:
    assert signal_to_noise(gram_of([2, 1], [2, 1], [2, 1])) == pytest.approx(1)
    assert signal_to_noise(np.eye(8)) == pytest.approx(1 / 8)


def random_gram(signal: float, seed: int, size: int = 24) -> np.ndarray:
    """Gradients of unit noise around one direction: the cosine of two is about signal^2 / (signal^2 + 1)."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((size, 400)) / 20
    rows[:, 0] += signal
    return rows @ rows.T


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """40 draws at 95 %: fewer than 34 hits happen once in a thousand times."""
    truth = 0.25 / 1.25
    found = [coherence(random_gram(0.5, seed)) for seed in range(40)]
    assert sum(one.low <= truth <= one.high for one in found) >= 34
    assert all(one.low < one.value < one.high for one in found)


def test_a_ratio_has_an_end_only_where_its_control_is_above_zero() -> None:
    strong, weak, none = random_gram(1.0, 0), random_gram(0.5, 1), random_gram(0.0, 2)
    bounded = ratio(strong, weak)
    assert bounded.value == pytest.approx(mean_cosine(strong) / mean_cosine(weak))
    assert 1 < bounded.low < bounded.value < bounded.high < 6
    unbounded = ratio(strong, none)
    assert (unbounded.low, unbounded.high) == (-np.inf, np.inf)
