"""A task's score as a mean of ratios of sums, so that a bootstrap computes it on all resamples at once. numpy only.

Shape letters: C clusters (samples of one image), T ratios, R resamples. Most tasks are one ratio, correct samples over
samples; MMBench counts circles instead of samples; MME has two ratios per category, correct answers and correct pairs
(acc and acc+ in its paper).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpbench import tasks
from dpbench.errors import ConfigError, RecordError

Scores = Mapping[str, Any]
"""What a task's `process_results` returned for one answer, as stored in the journal."""

PERCEPTION = frozenset(
    ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
)
"""MME's perception categories; every other one is cognition (MME, section 2)."""
ROTATION = 1_000_000
"""MMBench numbers the k-th rotation of question i as i + k * 1,000,000."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Per cluster of samples, the numerators and denominators of the T ratios whose mean is the score.

    Attributes:
        numerator_CT: number of correct units, float64.
        denominator_CT: number of units asked, float64.
        clusters: their names, in order of first appearance.
    """

    numerator_CT: NDArray[np.float64]
    denominator_CT: NDArray[np.float64]
    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """The smallest part that is right or wrong as a whole: a sample, an MME pair, an MMBench circle."""

    samples: tuple[int, ...]
    ratio: str
    value: float


def sums(task: str, scores: Sequence[Scores], clusters: Sequence[str]) -> Sums:
    """Sum a task's samples per cluster.

    Args:
        task: as in `dpbench.tasks.ALL`.
        scores: per sample, `Answer.scores`.
        clusters: per sample, the name of its image group.

    Raises:
        RecordError: a pair or circle is incomplete or in several clusters, or a score is missing.
        ConfigError: there is no such task, or only a server can score it.
    """
    units = list(_units(task, scores))
    column = {name: at for at, name in enumerate(dict.fromkeys(unit.ratio for unit in units))}
    row = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    numerator_CT = np.zeros((len(row), len(column)))
    denominator_CT = np.zeros((len(row), len(column)))
    for unit in units:
        at = row[_cluster(task, unit, clusters)], column[unit.ratio]
        numerator_CT[at] += unit.value
        denominator_CT[at] += 1
    return Sums(numerator_CT, denominator_CT, tuple(row))


def score(sums: Sums, weights_RC: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return the score, 0-100, of every resample: (R,).

    A ratio with a denominator of 0 in a resample is left out of its mean; with none left the score is NaN.

    Args:
        sums: of a task.
        weights_RC: how often each cluster was drawn; None counts every cluster once, with R = 1.
    """
    weights_RC = np.ones((1, len(sums.clusters))) if weights_RC is None else weights_RC
    asked_RT = weights_RC @ sums.denominator_CT
    right_RT = weights_RC @ sums.numerator_CT
    ratio_RT = np.divide(right_RT, asked_RT, out=np.zeros_like(asked_RT), where=asked_RT > 0)
    num_R = (asked_RT > 0).sum(1)
    mean_R = np.full(len(num_R), np.nan)
    np.divide(ratio_RT.sum(1), num_R, out=mean_R, where=num_R > 0)
    return 100 * mean_R


def metrics(task: str, scores: Sequence[Scores]) -> dict[str, float]:
    """Return every number that a task reports, on the scale of its paper, under the names of lmms-eval's results.

    Raises:
        RecordError: a pair or circle is incomplete.
        ConfigError: there is no such task, or only a server can score it.
    """
    benchmark = tasks.find(task)
    if benchmark.repository == "POPE":
        return pope([sample["pope_accuracy"] for sample in scores])
    ratios = _ratios(task, scores)
    if benchmark.group == "question_id":
        return mme(ratios)
    if benchmark.repository == "SEED-Bench":
        kinds = ("seed_all", "seed_image", "seed_video") if benchmark.metric == "seed_all" else ("seed_image",)
        return seedbench(scores, kinds)
    scale = 100 if benchmark.percent == "percent" else 1
    return {_metric(task): scale * value for value in ratios.values()}


def pope(answers: Sequence[Scores]) -> dict[str, float]:
    """Return POPE's numbers, 0-1, from predictions and ground truth.

    An answer that is neither yes nor no is wrong, and counts as a missed "yes" in the recall. `pope_yes_ratio` is the
    share of answers that are yes.

    Differs from lmms-eval: it leaves such answers out of the recall, and its yes ratio is that of the ground truth.
    """
    predicted = np.array([answer["prediction"] for answer in answers])
    truth = np.array([answer["ground_truth"] for answer in answers])
    hits = float(((predicted == "yes") & (truth == "yes")).sum())
    precision = hits / max(1, (predicted == "yes").sum())
    recall = hits / max(1, (truth == "yes").sum())
    return {
        "pope_accuracy": float((predicted == truth).mean()),
        "pope_precision": float(precision),
        "pope_recall": float(recall),
        "pope_f1_score": float(2 * precision * recall / (precision + recall)) if hits else 0.0,
        "pope_yes_ratio": float((predicted == "yes").mean()),
    }


def mme(ratios: Mapping[str, float]) -> dict[str, float]:
    """Return MME's perception (0-2000), cognition (0-800) and their sum (0-2800); a part that was not asked is absent.

    Args:
        ratios: acc of each category, 0-1, and its acc+ under the same name with a "+".
    """
    points: dict[str, float] = defaultdict(float)
    for name, value in ratios.items():
        part = "perception" if name.removesuffix("+") in PERCEPTION else "cognition"
        points[f"mme_{part}_score"] += 100 * value
    return {**points, "mme_total_score": sum(points.values())}


def seedbench(scores: Sequence[Scores], kinds: Sequence[str]) -> dict[str, float]:
    """Return SEED-Bench's accuracy, 0-1, for each kind of question that was asked."""
    hits = {kind: [_letter_hit(sample[kind]) for sample in scores if kind in sample] for kind in kinds}
    return {kind: float(np.mean(values)) for kind, values in hits.items() if values}


def _ratios(task: str, scores: Sequence[Scores]) -> dict[str, float]:
    """Return the ratios, with every sample counted once."""
    values: dict[str, list[float]] = defaultdict(list)
    for unit in _units(task, scores):
        values[unit.ratio].append(unit.value)
    return {name: float(np.mean(hits)) for name, hits in values.items()}


def _metric(task: str) -> str:
    metric = tasks.find(task).metric
    if metric is None:
        raise ConfigError(f"task {task}: only its server can score it; see dpbench.evaluation.submission")
    return metric


def _units(task: str, scores: Sequence[Scores]) -> Iterator[_Unit]:
    metric, group = _metric(task), tasks.find(task).group
    if missing := [at for at, sample in enumerate(scores) if metric not in sample]:
        raise RecordError(f"task {task}: sample {missing[0]} has no {metric} in its scores; run the cell again")
    asked = {at: sample[metric] for at, sample in enumerate(scores)}
    if group == "question_id":
        return _pairs(task, asked)
    if group == "circle":
        return _circles(asked)
    return (_Unit((at,), metric, _value(result)) for at, result in asked.items())


def _value(result: Any) -> float:
    """Return what one sample adds: its number, or 1 if the answer in lmms-eval's dict equals the ground truth."""
    if not isinstance(result, Mapping):
        return float(result)
    return float(result["prediction"] == result["ground_truth"]) if "prediction" in result else _letter_hit(result)


def _letter_hit(result: Scores) -> float:
    return float(result["pred"].strip().lower() == result["answer"].strip().lower())


def _pairs(task: str, asked: Mapping[int, Scores]) -> Iterator[_Unit]:
    """Yield MME's answers, and its pairs: two questions on one image, right only if both are."""
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, result in asked.items():
        pairs[result["category"], result["question_id"]].append(at)
        yield _Unit((at,), result["category"], result["score"])
    for (category, image), pair in pairs.items():
        if len(pair) != 2:
            raise RecordError(f"task {task}: {image} has {len(pair)} answered questions, MME scores pairs; run again")
        yield _Unit(tuple(pair), f"{category}+", float(all(asked[at]["score"] for at in pair)))


def _circles(asked: Mapping[int, Scores]) -> Iterator[_Unit]:
    """Yield MMBench's circles: a question is right if it is answered right under every rotation of its options."""
    circles: dict[int, list[int]] = defaultdict(list)
    for at, result in asked.items():
        circles[result["index"] % ROTATION].append(at)
    for circle in circles.values():
        yield _Unit(tuple(circle), "circle", float(all(asked[at]["hit"] for at in circle)))


def _cluster(task: str, unit: _Unit, clusters: Sequence[str]) -> str:
    """Return the cluster of a unit, or raise if it is in several."""
    names = sorted({clusters[at] for at in unit.samples})
    if len(names) > 1:
        raise RecordError(
            f"task {task}: samples {list(unit.samples)} are scored together but are in {len(names)} image groups "
            f"({', '.join(names)}); group them by image"
        )
    return names[0]
