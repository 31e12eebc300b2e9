"""The bootstrap: scipy's where there are no clusters, covering the truth, wider where samples hang together."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dpbench.report import statistics
from dpbench.tasks import aggregators
from dpbench.tasks.aggregators import Sums


def per_sample(values_CS: NDArray[np.float64]) -> Sums:
    """Return sums of C clusters with S samples each."""
    numerator_C1 = values_CS.sum(1, keepdims=True)
    return Sums(numerator_C1, np.full_like(numerator_C1, values_CS.shape[1]), tuple(map(str, range(len(values_CS)))))


def delta(ours: NDArray[np.float64], theirs: NDArray[np.float64], resamples: int = 10_000) -> NDArray[np.float64]:
    drawn = statistics.resample({"a": per_sample(ours), "b": per_sample(theirs)}, "seed", resamples)
    return drawn["a"] - drawn["b"]


def test_an_unclustered_interval_is_scipys() -> None:
    generator = np.random.default_rng(1)
    ours, theirs = (generator.random((300, 1)) < share for share in (0.8, 0.6))
    found = statistics.difference(100 * (ours.mean() - theirs.mean()), delta(ours * 1.0, theirs * 1.0), 300)
    assert found is not None
    points = 100.0 * (ours[:, 0].astype(float) - theirs[:, 0])
    wanted = stats.bootstrap((points,), np.mean, n_resamples=10_000, method="percentile", rng=2)
    near = 0.15 * wanted.standard_error  # four standard errors of a percentile of 10,000 resamples
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=near)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=near)
    assert found.value == pytest.approx(points.mean())


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits, truth, trials = 0, 10.0, 300
    for _ in range(trials):
        image = generator.normal(0, 0.2, (80, 1))  # what the questions of an image share
        gain = 0.1 + image + generator.normal(0, 0.3, (80, 4))
        theirs = generator.normal(0.5, 0.3, (80, 4))
        found = statistics.difference(100 * gain.mean(), delta(theirs + gain, theirs, 400), 80)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / trials <= 0.98


def test_clusters_widen_the_interval_of_samples_that_hang_together() -> None:
    generator = np.random.default_rng(4)
    gain = np.repeat(generator.normal(0, 1, (50, 1)), 6, axis=1)
    clustered = delta(gain, np.zeros_like(gain), 2000).std()
    alone = delta(gain.reshape(-1, 1), np.zeros((300, 1)), 2000).std()
    assert clustered / alone == pytest.approx(6**0.5, rel=0.1)


def test_a_resample_is_scored_as_if_its_images_had_been_asked_again() -> None:
    generator = np.random.default_rng(5)
    scores, clusters = [], []
    for image in range(12):
        for _ in range(2):
            category = ("existence", "count")[image % 2]
            found = {"category": category, "question_id": f"{image}.jpg", "score": float(generator.random() < 0.6)}
            scores.append({"mme_total_score": found})
            clusters.append(f"{image}")
    sums = aggregators.sums("mme", scores, clusters)
    drawn = statistics.resample({0: sums}, "any", 5)[0]
    (block,) = statistics.weights(12, 5, "any")
    for row, value in zip(block, drawn, strict=True):
        again = []
        for image, count in enumerate(row.astype(int)):
            for copy in range(count):
                pair = [each["mme_total_score"] for each in scores[2 * image : 2 * image + 2]]
                again += [{"mme_total_score": {**each, "question_id": f"{image} again {copy}"}} for each in pair]
        wanted = aggregators.score(aggregators.sums("mme", again, [s["mme_total_score"]["question_id"] for s in again]))
        assert value == pytest.approx(wanted[0])


@pytest.mark.parametrize("num_clusters", [1, 7, 1000, 300_000])
def test_every_resample_draws_as_many_images_as_there_are(num_clusters: int) -> None:
    blocks = list(statistics.weights(num_clusters, 5, "seed"))
    counts = np.concatenate(blocks)
    assert counts.shape == (5, num_clusters)
    assert (counts.sum(1) == num_clusters).all()
    assert counts.min() >= 0


def test_every_image_is_drawn_equally_often() -> None:
    counts = np.concatenate(list(statistics.weights(6, 4000, "seed")))
    assert counts.mean(0) == pytest.approx(np.ones(6), abs=0.08)  # five standard errors
    assert counts.var(0) == pytest.approx(np.full(6, 5 / 6), abs=0.15)


def test_the_same_images_are_drawn_for_all_methods_and_for_the_same_seed_only() -> None:
    values = np.random.default_rng(6).random((40, 2))
    drawn = statistics.resample({"a": per_sample(values), "b": per_sample(values)}, "seed", 50)
    assert (drawn["a"] == drawn["b"]).all()
    other = statistics.resample({"a": per_sample(values)}, "another", 50)
    assert (drawn["a"] != other["a"]).any()


def test_cells_of_other_images_cannot_be_paired() -> None:
    cells = {0: per_sample(np.ones((3, 1))), 1: per_sample(np.ones((4, 1)))}
    with pytest.raises(ValueError, match="same clusters"):
        statistics.resample(cells, "seed", 10)


def test_holm_by_hand() -> None:
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert statistics.holm({}) == {}


def test_no_difference_is_no_difference() -> None:
    found = statistics.difference(0.0, np.zeros(100), 50)
    assert found == statistics.Difference(0.0, 0.0, 0.0, 1.0)


def test_one_image_has_no_interval() -> None:
    """Every resample of one image is that image: the interval would be a single value."""
    assert statistics.difference(100.0, np.full(100, 100.0), 1) is None


def test_three_images_that_all_agree_prove_little() -> None:
    found = statistics.difference(100.0, np.full(100, 100.0), 3)
    assert found is not None
    assert found.p == 0.25  # two of eight sign patterns


def test_a_p_value_never_contradicts_its_interval() -> None:
    generator = np.random.default_rng(7)
    for shift in np.linspace(0, 3, 40):
        drawn = generator.exponential(1.0, 2000) - shift  # skewed: a normal p-value alone would contradict
        found = statistics.difference(float(drawn.mean()), drawn, 500)
        assert found is not None
        if found.low <= 0 <= found.high:
            assert found.p >= 0.05 - 2e-3


def test_a_resample_without_a_score_leaves_no_interval() -> None:
    assert statistics.difference(1.0, np.array([1.0, np.nan]), 5) is None
