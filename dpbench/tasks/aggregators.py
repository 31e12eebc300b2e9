"""A task's score as a mean of ratios of sums, so that a bootstrap computes it on all resamples at once. numpy only.

Shape letters: C clusters (samples of one image), T ratios, R resamples. Most tasks are one ratio, correct samples over
samples; MMBench counts circles instead of samples; MME has two ratios per category, correct answers and correct pairs
(acc and acc+ in its paper). POPE has one ratio per split, its F1: 2 * hits over what was said to be there plus what is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
F1 = "pope_f1_score"
"""The metric whose denominators depend on the answers."""
ROTATION = 1_000_000
"""MMBench numbers the k-th rotation of question i as i + k * 1,000,000."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Per cluster of samples, the numerators and denominators of the T ratios whose mean is the score.

    Attributes:
        numerator_CT: number of correct units, float64; for an F1 twice the hits.
        denominator_CT: number of units asked, float64; for an F1 the "yes" answers plus the "yes" questions.
        clusters: their names, in order of first appearance.
    """

    numerator_CT: NDArray[np.float64]
    denominator_CT: NDArray[np.float64]
    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """The smallest part that is right or wrong as a whole: a sample, an MME pair, an MMBench circle.

    Attributes:
        samples: their numbers.
        ratio: the name of the ratio it is a part of.
        value: what it adds to the numerator.
        weight: what it adds to the denominator.
    """

    samples: tuple[int, ...]
    ratio: str
    value: float
    weight: float = 1.0


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
        denominator_CT[at] += unit.weight
    return Sums(numerator_CT, denominator_CT, tuple(row))


def score(sums: Sums, weights_RC: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return the score, 0-100, of every resample: (R,).

    A ratio with a denominator of 0 in a resample is left out of its mean. With none left the score is 0, as an F1
    without a single yes; where no cluster was drawn it is NaN.

    Args:
        sums: of a task.
        weights_RC: how often each cluster was drawn; None counts every cluster once, with R = 1.
    """
    weights_RC = np.ones((1, len(sums.clusters))) if weights_RC is None else weights_RC
    asked_RT = weights_RC @ sums.denominator_CT
    right_RT = weights_RC @ sums.numerator_CT
    ratio_RT = np.divide(right_RT, asked_RT, out=np.zeros_like(asked_RT), where=asked_RT > 0)
    num_R = (asked_RT > 0).sum(1)
    # Only an F1 can lose all its denominators in a resample: nothing said yes and nothing there. That is an F1 of 0.
    mean_R = np.where(weights_RC.sum(1) > 0, 0.0, np.nan)
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
        return pope([sample[F1] for sample in scores])
    ratios = _ratios(task, scores)
    if benchmark.group == "question_id":
        return mme(ratios)
    if benchmark.repository == "SEED-Bench":
        kinds = ("seed_all", "seed_image", "seed_video") if benchmark.metric == "seed_all" else ("seed_image",)
        return seedbench(scores, kinds)
    scale = 100 if benchmark.percent == "percent" else 1
    return {_metric(task): scale * value for value in ratios.values()}


def pope(answers: Sequence[Scores]) -> dict[str, float]:
    """Return POPE's numbers, 0-1, from predictions, ground truth and splits.

    `pope_f1_score` is the mean of the F1 of the splits present (adversarial, popular, random), as publications state
    it; `pope_f1_pooled` is that of all questions together. An answer that is neither yes nor no is wrong, and counts as
    a missed "yes" in the recall. `pope_yes_ratio` is the share of answers that are yes.

    Differs from lmms-eval: its F1 is the pooled one, it leaves such answers out of the recall, and its yes ratio is
    that of the ground truth.
    """
    predicted = np.array([answer["prediction"] == "yes" for answer in answers])
    truth = np.array([answer["ground_truth"] == "yes" for answer in answers])
    hits = float((predicted & truth).sum())
    by_split = list(_mean_ratios(_detections(dict(enumerate(answers)))).values())
    return {
        "pope_accuracy": float(np.mean([is_right(answer) for answer in answers])),
        "pope_precision": hits / max(1, int(predicted.sum())),
        "pope_recall": hits / max(1, int(truth.sum())),
        F1: float(np.mean(by_split)) if by_split else 0.0,
        "pope_f1_pooled": 2 * hits / max(1, int(predicted.sum() + truth.sum())),
        "pope_yes_ratio": float(predicted.mean()),
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
    return _mean_ratios(_units(task, scores))


def _mean_ratios(units: Iterable[_Unit]) -> dict[str, float]:
    """Return the ratios of units, without those that have nothing to divide by."""
    values: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for unit in units:
        values[unit.ratio] += unit.value
        weights[unit.ratio] += unit.weight
    return {name: values[name] / weight for name, weight in weights.items() if weight}


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
    if metric == F1:
        return _detections(asked)
    return (_Unit((at,), metric, _value(result)) for at, result in asked.items())


def _value(result: Any) -> float:
    """Return what one sample adds: its number, or 1 if the letter in lmms-eval's dict is the right one."""
    if not isinstance(result, Mapping):
        return float(result)
    return _letter_hit(result)


def _letter_hit(result: Scores) -> float:
    return float(result["pred"].strip().lower() == result["answer"].strip().lower())


def is_right(result: Scores) -> bool:
    """Return True if an answer of POPE says what is true."""
    return bool(result["prediction"] == result["ground_truth"])


def _detections(asked: Mapping[int, Scores]) -> Iterator[_Unit]:
    """Yield POPE's answers as parts of their split's F1, 2 * hits / ("yes" answers + "yes" questions).

    Data without splits, and journals of earlier versions, have one F1 over all questions.
    """
    for at, result in asked.items():
        said, true = result["prediction"] == "yes", result["ground_truth"] == "yes"
        yield _Unit((at,), result.get("category") or "all", 2.0 * (said and true), float(said + true))


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
