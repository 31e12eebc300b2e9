"""A task's score as a mean of ratios of sums, so that a bootstrap re-runs it on every resample at once. numpy only.

C clusters (samples of one image), T ratios, R resamples. Most tasks are one ratio, right samples by samples; MMBench
counts circles; MME has two ratios a category, answers right and pairs right, as its paper's acc and acc+.
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
"""What a task's `process_results` made of one answer, as the journal keeps it."""

PERCEPTION = frozenset(
    ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
)
"""MME's perception categories; every other one is cognition (MME, section 2)."""
ROTATION = 1_000_000
"""MMBench numbers the k-th rotation of question i as i + k * 1,000,000."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Per cluster of samples (one image), the numerators and denominators of the T ratios whose mean is the score.

    Attributes:
        numerator_CT: what was right, float64.
        denominator_CT: what was asked, float64.
        clusters: their names, in the order they were first seen.
    """

    numerator_CT: NDArray[np.float64]
    denominator_CT: NDArray[np.float64]
    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is right or wrong as a whole: one sample, one MME pair, one MMBench circle."""

    samples: tuple[int, ...]
    ratio: str
    value: float


def sums(task: str, scores: Sequence[Scores], clusters: Sequence[str]) -> Sums:
    """Add up a task's samples per cluster.

    Args:
        task: as in `dpbench.tasks.ALL`.
        scores: per sample, `Answer.scores`.
        clusters: per sample, the name of its image group.

    Raises:
        RecordError: a pair or a circle is not whole, or lies in several clusters; a score is missing.
        ConfigError: there is no such task, or only a server scores it.
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

    A ratio that a resample asks nothing of drops out of its mean; where none is left the score is NaN.

    Args:
        sums: of a task.
        weights_RC: how often each cluster was drawn; None counts each once and gives R = 1.
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
    """Return every number a task reports, on its own paper's scale, by the name lmms-eval's results have.

    Raises:
        RecordError: a pair or a circle is not whole.
        ConfigError: there is no such task, or only a server scores it.
    """
    known = tasks.find(task)
    if known.repository == "POPE":
        return pope([each["pope_accuracy"] for each in scores])
    ratios = _ratios(task, scores)
    if known.group == "question_id":
        return mme(ratios)
    if known.repository == "SEED-Bench":
        kinds = ("seed_all", "seed_image", "seed_video") if known.metric == "seed_all" else ("seed_image",)
        return seedbench(scores, kinds)
    scale = 100 if known.percent == "percent" else 1
    return {_metric(task): scale * value for value in ratios.values()}


def pope(answers: Sequence[Scores]) -> dict[str, float]:
    """Return POPE's numbers, 0-1, from what its samples answered and should have.

    An answer that is neither yes nor no is a miss: it is wrong, and a "yes" not found. `pope_yes_ratio` is how often
    the model said yes.

    Differs from lmms-eval: there such answers are missing from the recall, and the yes ratio is the ground truth's.
    """
    said = np.array([each["prediction"] for each in answers])
    true = np.array([each["ground_truth"] for each in answers])
    hits = float(((said == "yes") & (true == "yes")).sum())
    precision = hits / max(1, (said == "yes").sum())
    recall = hits / max(1, (true == "yes").sum())
    return {
        "pope_accuracy": float((said == true).mean()),
        "pope_precision": float(precision),
        "pope_recall": float(recall),
        "pope_f1_score": float(2 * precision * recall / (precision + recall)) if hits else 0.0,
        "pope_yes_ratio": float((said == "yes").mean()),
    }


def mme(ratios: Mapping[str, float]) -> dict[str, float]:
    """Return MME's perception (0-2000), cognition (0-800) and their sum (0-2800), each where it was asked.

    Args:
        ratios: per category its acc, and under the name with a "+" its acc+, 0-1.
    """
    points: dict[str, float] = defaultdict(float)
    for name, value in ratios.items():
        part = "perception" if name.removesuffix("+") in PERCEPTION else "cognition"
        points[f"mme_{part}_score"] += 100 * value
    return {**points, "mme_total_score": sum(points.values())}


def seedbench(scores: Sequence[Scores], kinds: Sequence[str]) -> dict[str, float]:
    """Return SEED-Bench's accuracies, 0-1, of those kinds of question, where they were asked."""
    right = {name: [_letter_hit(each[name]) for each in scores if name in each] for name in kinds}
    return {name: float(np.mean(values)) for name, values in right.items() if values}


def _ratios(task: str, scores: Sequence[Scores]) -> dict[str, float]:
    """Return the ratios themselves, every sample counted once."""
    values: dict[str, list[float]] = defaultdict(list)
    for unit in _units(task, scores):
        values[unit.ratio].append(unit.value)
    return {name: float(np.mean(each)) for name, each in values.items()}


def _metric(task: str) -> str:
    metric = tasks.find(task).metric
    if metric is None:
        raise ConfigError(f"task {task}: only its server scores it; write the answers with dpbench.tasks.submission")
    return metric


def _units(task: str, scores: Sequence[Scores]) -> Iterator[_Unit]:
    metric, group = _metric(task), tasks.find(task).group
    if missing := [at for at, each in enumerate(scores) if metric not in each]:
        raise RecordError(f"task {task}: sample {missing[0]} has no {metric} in its scores; run the cell again")
    asked = {at: each[metric] for at, each in enumerate(scores)}
    if group == "question_id":
        return _pairs(task, asked)
    if group == "circle":
        return _circles(asked)
    return (_Unit((at,), metric, _value(each)) for at, each in asked.items())


def _value(found: Any) -> float:
    """Return what one sample adds: upstream's dict of an answer and its truth, or a number."""
    if not isinstance(found, Mapping):
        return float(found)
    return float(found["prediction"] == found["ground_truth"]) if "prediction" in found else _letter_hit(found)


def _letter_hit(found: Scores) -> float:
    return float(found["pred"].strip().lower() == found["answer"].strip().lower())


def _pairs(task: str, asked: Mapping[int, Scores]) -> Iterator[_Unit]:
    """Yield MME's answers, and its pairs: two questions on one image, right together."""
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, each in asked.items():
        pairs[each["category"], each["question_id"]].append(at)
        yield _Unit((at,), each["category"], each["score"])
    for (category, image), pair in pairs.items():
        if len(pair) != 2:
            raise RecordError(f"task {task}: {image} has {len(pair)} answered questions, MME scores pairs; run again")
        yield _Unit(tuple(pair), f"{category}+", float(all(asked[at]["score"] for at in pair)))


def _circles(asked: Mapping[int, Scores]) -> Iterator[_Unit]:
    """Yield MMBench's circles: a question counts if every rotation of its options is answered right."""
    circles: dict[int, list[int]] = defaultdict(list)
    for at, each in asked.items():
        circles[each["index"] % ROTATION].append(at)
    for circle in circles.values():
        yield _Unit(tuple(circle), "circle", float(all(asked[at]["hit"] for at in circle)))


def _cluster(task: str, unit: _Unit, clusters: Sequence[str]) -> str:
    """Return the one cluster a unit lies in."""
    names = sorted({clusters[at] for at in unit.samples})
    if len(names) > 1:
        raise RecordError(
            f"task {task}: samples {list(unit.samples)} are scored together but lie in {len(names)} image groups "
            f"({', '.join(names)}); group them by image"
        )
    return names[0]
