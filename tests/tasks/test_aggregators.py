"""The aggregators: equal to lmms-eval's on random answers and on resamples of them, and to sums made by hand."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import upstream
from lmms_eval.tasks.mme.utils import eval_type_dict
from places import TOY_DATA

from dpbench import tasks
from dpbench.errors import ConfigError, RecordError
from dpbench.tasks import aggregators, lmms_eval_adapter, lmms_eval_scores

SCORED = [name for name, task in tasks.ALL.items() if task.metric]
FORMS = ("{}", "{}.", " {} ")
"""How a word may be written for lmms-eval and dpbench to read it alike."""


@cache
def built(name: str) -> lmms_eval_adapter.BuiltTask:
    return lmms_eval_adapter.build(name, TOY_DATA, limit=None)


@cache
def docs(name: str) -> list[dict[str, Any]]:
    rows = built(name).task.test_docs_no_media()
    return [rows[request.doc_id] for request in built(name).requests]


@cache
def image_groups(name: str) -> list[str]:
    images = [built(name).images(request) for request in built(name).requests]
    return [sha256(b"".join(image.tobytes() for image in each)).hexdigest()[:8] for each in images]


def said(name: str, doc: Mapping[str, Any], rng: random.Random) -> str:
    """Return a random answer, half the time a right one."""
    right = rng.random() < 0.5
    if name in ("mme", "pope"):
        return str(doc["answer"] if right else rng.choice(["yes", "no", "Yes", "No"]))
    if name.startswith("mmbench"):
        letter = doc["answer"] if right else rng.choice("ABCD")
        return rng.choice([letter, f"({letter})", f"{letter}. {doc[letter]}", str(doc[letter]), "???"])
    if name in ("scienceqa", "seedbench", "seedbench_all"):
        letter = "ABCD"[doc["answer"]] if name == "scienceqa" else doc["answer"]
        letter = letter if right else rng.choice("ABCD")
        return rng.choice([letter, letter.lower(), f"{letter}. so it is"])
    answers = doc.get("answers") or [doc["answer"]]
    words = [each["answer"] if isinstance(each, dict) else each for each in answers]
    return rng.choice(FORMS).format(rng.choice(words) if right else rng.choice(["red", "two", "the cube", "", "yes"]))


def random_answers(name: str, seed: int) -> list[str]:
    """Return answers of which some pairs and circles are wholly right."""
    rng = random.Random(seed)
    told = [said(name, doc, rng) for doc in docs(name)]
    whole = {group for group in image_groups(name) if rng.random() < 0.4}
    if tasks.find(name).group:
        return [d["answer"] if g in whole else t for d, g, t in zip(docs(name), image_groups(name), told, strict=True)]
    return told


def journalled(name: str, answers: Sequence[str]) -> list[dict[str, Any]]:
    return [built(name).scores(request, said) for request, said in zip(built(name).requests, answers, strict=True)]


def upstream_percent(name: str, read: Sequence[Mapping[str, Any]]) -> float:
    """Return upstream's score on 0-100; MME's is the sum of its two scores, as share of 200 a category."""
    base, task = tasks.find(name).variant_of or name, tasks.find(name)
    if base == "pope":
        return upstream_f1_of_splits(read)
    if base != "mme":
        assert task.metric is not None
        return float(upstream.percent(base, read, task.metric))
    parts = ["mme_perception_score", "mme_cognition_score"]
    points = sum(upstream.percent(base, read, part) for part in parts if any(part in each for each in read))
    return 100 * points / (200 * len({each["category"] for row in read for each in row.values()}))


def upstream_f1_of_splits(read: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean of upstream's F1 over the splits, which upstream scores by a task each."""
    category = {doc["question_id"]: doc["category"] for doc in docs("pope")}
    splits: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in read:
        splits[category[each["pope_f1_score"]["question_id"]]].append(each)
    assert set(splits) == {"adversarial", "popular", "random"}
    return float(np.mean([upstream.percent("pope", part, "pope_f1_score") for part in splits.values()]))


def upstream_read(name: str, answers: Sequence[str]) -> list[dict[str, Any]]:
    base = tasks.find(name).variant_of or name
    return [upstream.read(base, doc, said) for doc, said in zip(docs(name), answers, strict=True)]


FAST = [pytest.param(name, marks=pytest.mark.slow) if name == "mmbench_cn" else name for name in SCORED]
"""MMBench-CN is aggregated by the code of MMBench."""


@pytest.mark.parametrize("name", FAST)
def test_the_score_is_lmms_evals_on_random_answers(name: str) -> None:
    answers = random_answers(name, 1)
    mine = aggregators.score(aggregators.sums(name, journalled(name, answers), image_groups(name)))
    assert mine.shape == (1,)
    assert 10 < mine[0] < 90
    assert mine[0] == pytest.approx(upstream_percent(name, upstream_read(name, answers)))


@pytest.mark.parametrize("name", SCORED)
def test_score_and_metrics_are_what_the_evaluator_reports_of_our_yaml(name: str) -> None:
    answers = random_answers(name, 2)
    known = {(r.doc_id, r.text): said for r, said in zip(built(name).requests, answers, strict=True)}
    reported = lmms_eval_scores.score(built(name), "cell", known)
    kept = journalled(name, answers)
    mine = aggregators.score(aggregators.sums(name, kept, image_groups(name)))[0]
    assert mine == pytest.approx(lmms_eval_scores.percent(name, reported))
    assert aggregators.metrics(name, kept) == pytest.approx(dict(reported.metrics))


def copied(name: str, read: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a copy of what was read of one answer that scores in a pair or circle of its own."""
    moved = {}
    for metric, found in read.items():
        if name == "mme":
            found = {**found, "question_id": f"{found['question_id']}/{number}"}
        elif name.startswith("mmbench"):
            found = {**found, "index": found["index"] + 1000 * number}
        moved[metric] = found
    return moved


@pytest.mark.parametrize("name", FAST)
def test_a_weight_is_how_often_a_cluster_was_drawn(name: str) -> None:
    answers, groups, rng = random_answers(name, 3), image_groups(name), np.random.default_rng(0)
    added = aggregators.sums(name, journalled(name, answers), groups)
    weights_RC = rng.multinomial(len(added.clusters), np.full(len(added.clusters), 1 / len(added.clusters)), size=3)
    read = upstream_read(name, answers)
    for weights_C, mine in zip(weights_RC, aggregators.score(added, weights_RC), strict=True):
        times = dict(zip(added.clusters, weights_C, strict=True))
        drawn = [copied(name, r, k) for r, group in zip(read, groups, strict=True) for k in range(times[group])]
        assert mine == pytest.approx(upstream_percent(name, drawn))


def pair(category: str, image: str, *right: float) -> list[dict[str, Any]]:
    return [{"mme_total_score": {"question_id": image, "category": category, "score": each}} for each in right]


def test_mme_by_hand() -> None:
    """Category color: 3 of 4 right, 1 of 2 pairs. Category text_translation: 1 of 2, no pair."""
    scores = pair("color", "a", 1, 1) + pair("color", "b", 1, 0) + pair("text_translation", "c", 0, 1)
    added = aggregators.sums("mme", scores, list("aabbcc"))
    assert aggregators.score(added)[0] == pytest.approx(100 * (75 + 50 + 50 + 0) / 400)
    told = {"mme_perception_score": 125, "mme_cognition_score": 50, "mme_total_score": 175}
    assert aggregators.metrics("mme", scores) == pytest.approx(told)


def test_a_ratio_that_is_not_asked_drops_out_and_without_any_there_is_no_score() -> None:
    scores = pair("color", "a", 1, 1) + pair("count", "b", 0, 0)
    added = aggregators.sums("mme", scores, list("aabb"))
    assert aggregators.score(added, np.array([[1, 1], [2, 0], [0, 3]])) == pytest.approx([50, 100, 0])
    assert np.isnan(aggregators.score(added, np.array([[0, 0]]))[0])


def test_an_f1_without_a_single_yes_is_0_in_a_resample_as_in_the_metrics() -> None:
    answers = [{"prediction": "no", "ground_truth": truth, "category": "random"} for truth in ("no", "yes")]
    scores = [{"pope_f1_score": answer, "pope_accuracy": answer} for answer in answers]
    added = aggregators.sums("pope", scores, ["a", "b"])
    assert aggregators.score(added, np.array([[2, 0], [0, 2], [1, 1]])).tolist() == [0, 0, 0]
    assert aggregators.metrics("pope", scores[:1])["pope_f1_score"] == 0


def test_a_broken_pair_is_an_error() -> None:
    with pytest.raises(RecordError, match="task mme: a has 1 answered questions, MME scores pairs"):
        aggregators.sums("mme", pair("color", "a", 1), ["a"])


def turn(index: int, hit: bool) -> dict[str, Any]:
    return {"gpt_eval_score": {"index": index, "hit": hit}}


def test_mmbench_counts_a_circle_only_if_every_rotation_is_right() -> None:
    scores = [turn(7, True), turn(1_000_007, True), turn(8, True), turn(1_000_008, False), turn(2_000_008, True)]
    added = aggregators.sums("mmbench_en", scores, ["x", "x", "y", "y", "y"])
    assert aggregators.score(added) == pytest.approx([50])
    assert added.numerator_CT.tolist() == [[1], [0]]
    assert added.denominator_CT.tolist() == [[1], [1]]
    assert added.clusters == ("x", "y")


def test_a_circle_in_two_image_groups_is_an_error() -> None:
    with pytest.raises(RecordError, match=r"samples \[0, 1\] are scored together but are in 2 image groups \(x, y\)"):
        aggregators.sums("mmbench_cn", [turn(7, True), turn(1_000_007, True)], ["x", "y"])


def test_clusters_add_up_in_the_order_they_are_first_seen() -> None:
    scores = [{"exact_match": each} for each in (1.0, 0.3, 0.0, 0.6)]
    added = aggregators.sums("vqav2", scores, ["b", "a", "b", "a"])
    assert added.clusters == ("b", "a")
    assert added.numerator_CT[:, 0] == pytest.approx([1.0, 0.9])
    assert aggregators.score(added) == pytest.approx([47.5])


def pope_answer(prediction: str, truth: str, split: str = "adversarial") -> dict[str, Any]:
    return {"prediction": prediction, "ground_truth": truth, "category": split}


def test_pope_by_hand_counts_what_is_neither_yes_nor_no_as_a_miss() -> None:
    told = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("other", "yes"), ("no", "yes")]
    found = aggregators.pope([pope_answer(prediction, truth) for prediction, truth in told])
    assert found["pope_accuracy"] == pytest.approx(2 / 5)
    assert found["pope_precision"] == pytest.approx(1 / 2)
    assert found["pope_recall"] == pytest.approx(1 / 3)
    assert found["pope_f1_score"] == pytest.approx(2 / 5)
    assert found["pope_yes_ratio"] == pytest.approx(2 / 5)
    assert aggregators.pope([pope_answer("no", "yes")])["pope_f1_score"] == 0


def published_split(split: str, recall: int, false_positives: int) -> list[dict[str, Any]]:
    """Return 50 yes and 50 no questions with so many hits and false positives."""
    told = [("yes" if at < recall else "no", "yes") for at in range(50)]
    told += [("yes" if at < false_positives else "no", "no") for at in range(50)]
    return [{aggregators.F1: pope_answer(prediction, truth, split)} for prediction, truth in told]


def test_popes_score_is_the_mean_of_the_f1_of_the_three_splits() -> None:
    """By precision and recall: adversarial 0.75 and 0.9, popular 0.9 and 0.9, random 1 and 0.9."""
    parts = [
        published_split("adversarial", 45, 15),
        published_split("popular", 45, 5),
        published_split("random", 45, 0),
    ]
    f1s = [2 * 0.75 * 0.9 / 1.65, 0.9, 2 * 0.9 / 1.9]
    scores = [sample for part in parts for sample in part]
    found = aggregators.metrics("pope", scores)
    assert found["pope_f1_score"] == pytest.approx(sum(f1s) / 3)
    assert found["pope_f1_pooled"] == pytest.approx(2 * 135 / (155 + 150))
    assert found["pope_accuracy"] == pytest.approx(1 - 35 / 300)
    assert found["pope_yes_ratio"] == pytest.approx(155 / 300)
    added = aggregators.sums("pope", scores, [f"image {at % 50}" for at in range(300)])
    assert aggregators.score(added)[0] == pytest.approx(100 * found["pope_f1_score"])


@pytest.mark.parametrize(("recall", "false_positives", "accuracy", "f1"), [(104, 4, 75.0, 67.5), (70, 4, 66.5, 51.1)])
def test_f1_falls_below_accuracy_when_little_is_said_to_be_there(
    recall: int, false_positives: int, accuracy: float, f1: float
) -> None:
    """Of 200 objects that are there and 200 that are not; recall .52 and .35, false positives .02."""
    told = [("yes", "yes")] * recall + [("no", "yes")] * (200 - recall)
    told += [("yes", "no")] * false_positives + [("no", "no")] * (200 - false_positives)
    found = aggregators.pope([pope_answer(prediction, truth) for prediction, truth in told])
    assert 100 * found["pope_accuracy"] == pytest.approx(accuracy)
    assert 100 * found["pope_f1_score"] == pytest.approx(f1, abs=0.05)


def test_splits_that_are_absent_are_left_out_and_without_splits_there_is_one_f1() -> None:
    adversarial, plain = published_split("adversarial", 45, 15), published_split("", 45, 15)
    assert aggregators.metrics("pope", adversarial)["pope_f1_score"] == pytest.approx(90 / 110)
    assert aggregators.metrics("pope", plain)["pope_f1_score"] == pytest.approx(90 / 110)
    both = aggregators.sums("pope", adversarial + published_split("random", 45, 0), ["a"] * 100 + ["b"] * 100)
    assert aggregators.score(both, np.array([[1, 0]]))[0] == pytest.approx(100 * 90 / 110)


def test_a_journal_without_the_tasks_scores_is_an_error() -> None:
    with pytest.raises(RecordError, match="task gqa: sample 1 has no exact_match in its scores"):
        aggregators.sums("gqa", [{"exact_match": 1.0}, {}], ["a", "b"])
    with pytest.raises(ConfigError, match="only its server can score it"):
        aggregators.sums("vqav2_testdev", [{}], ["a"])


def test_perception_is_lmms_evals() -> None:
    assert frozenset(eval_type_dict["Perception"]) == aggregators.PERCEPTION
