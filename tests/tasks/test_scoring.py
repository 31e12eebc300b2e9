"""What an answer counts for, computed by hand, and where dpbench reads it otherwise than lmms-eval does."""

import io
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import upstream
from datasets import Dataset, List
from datasets import Image as ImageColumn
from PIL import Image
from places import TOY_DATA

from dpbench import tasks
from dpbench.tasks import aggregators, lmms_eval_adapter, lmms_eval_scores, scoring

MMBENCH: dict[str, Any] = {
    "index": 7, "question": "What is it?", "hint": "nan", "answer": "B", "A": "apple", "B": "banana", "C": "nan",
    "D": "nan", "category": "objects", "L2-category": "perception", "source": "s", "split": "dev",
}  # fmt: skip
SQA: dict[str, Any] = {"question": "Which?", "choices": ["red", "blue"], "answer": 1, "hint": ""}
SEED: dict[str, Any] = {"answer": "B", "data_type": "image", "question_id": "1", "question": "Which?"}
POPE: dict[str, Any] = {"question_id": "1", "answer": "yes", "question": "Is there a dog?"}


@cache
def task(name: str) -> lmms_eval_adapter.BuiltTask:
    return lmms_eval_adapter.build(name, TOY_DATA, limit=8)


def read(name: str, doc: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return what the task's own YAML makes of one answer."""
    return dict(task(name).task.process_results(doc, [answer]))


def both(name: str, doc: dict[str, Any], answer: str) -> tuple[float, float]:
    """Return an answer's score, 0 or 1, here and upstream."""
    metric = tasks.find(name).metric
    assert metric is not None
    mine = aggregators.metrics(name, [read(name, doc, answer)])[metric]
    theirs = upstream.percent(name, [upstream.read(name, doc, answer)], metric)
    return (mine / 100 if tasks.find(name).percent == "percent" else mine), theirs / 100


@pytest.mark.parametrize(
    ("answer", "here", "there"),
    [("yes", 1, 1), ("Yes", 1, 1), ("Yes.", 1, 0), ("yes, there is", 1, 0), ('"Yes"', 1, 0), ("no", 0, 0),
     ("There is a dog", 0, 0), ("yesterday", 0, 0), ("", 0, 0)],
)  # fmt: skip
def test_pope_takes_the_first_word(answer: str, here: float, there: float) -> None:
    assert both("pope", POPE, answer) == (here, there)


@pytest.mark.parametrize(
    ("answer", "prediction"),
    [("yes", "yes"), ("No", "no"), ("no, there is none", "no"), ("There is not.", "no"), ("There is no dog.", "no"),
     ("", "yes"), ("There is a dog", "yes"), ("hm", "yes"), ("Yes. There is no doubt.", "yes"), ("nothing", "yes"),
     ("NO", "yes"), ("Not really", "yes"), ("No, yes.", "no")],
)  # fmt: skip
def test_llavas_reading_is_yes_unless_the_first_sentence_denies(answer: str, prediction: str) -> None:
    """The words "No", "no" and "not" deny, without commas, up to the first full stop."""
    built = lmms_eval_adapter.build("pope", TOY_DATA, limit=2, reading="llava")
    for truth in ("yes", "no"):
        found = built.task.process_results(POPE | {"answer": truth, "category": "random"}, [answer])
        wanted = {"prediction": prediction, "ground_truth": truth, "category": "random"}
        assert dict(found) == dict.fromkeys(scoring.POPE_METRICS, wanted)


def test_an_answer_that_says_nothing_is_wrong_by_its_first_word_and_a_yes_with_llava() -> None:
    scores = []
    for reading in ("first-word", "llava"):
        built = lmms_eval_adapter.build("pope", TOY_DATA, limit=None, reading=reading)
        known = {(request.doc_id, request.text): "" for request in built.requests}
        scores.append(lmms_eval_scores.score(built, reading, known).metrics)
    assert [each["pope_f1_score"] for each in scores] == pytest.approx([0, 2 / 3], abs=0.02)
    assert [each["pope_yes_ratio"] for each in scores] == [0, 1]


def test_popes_f1_and_yes_ratio_here_and_upstream() -> None:
    """Of three objects the model finds one, denies one and mumbles on one; upstream forgets the last."""
    asked = [("yes", "yes"), ("no", "yes"), ("hm", "yes"), ("no", "no")]
    docs = [POPE | {"answer": truth} for _, truth in asked]
    mine = aggregators.metrics("pope", [read("pope", d, said) for d, (said, _) in zip(docs, asked, strict=True)])
    theirs = [upstream.read("pope", d, said) for d, (said, _) in zip(docs, asked, strict=True)]
    assert mine["pope_f1_score"] == pytest.approx(2 * (1 * 1 / 3) / (1 + 1 / 3))
    assert upstream.percent("pope", theirs, "pope_f1_score") / 100 == pytest.approx(2 * (1 * 1 / 2) / (1 + 1 / 2))
    assert mine["pope_yes_ratio"] == pytest.approx(1 / 4)
    assert upstream.percent("pope", theirs, "pope_yes_ratio") / 100 == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("answer", "here", "there"),
    [("B", 1, 1), ("b", 1, 1), ("B. blue", 1, 1), ("(B)", 1, 0), ("B)", 1, 0), ("(B) blue", 1, 0), ("B: blue", 1, 0),
     ("A", 0, 0), ("Blue", 1, 0), ("blue", 1, 0), ("", 0, 0), ("A. not B", 0, 0), ("The answer is B.", 1, 0),
     ("It is the sky, so the answer is (B).", 1, 0), ("the answer is B", 1, 0), ("The answer is A.", 0, 0),
     ("The answer is Blue.", 1, 0), ("The answer is A. The answer is B.", 0, 0), ("The answer is B-flat", 0, 0)],
)  # fmt: skip
def test_scienceqa_takes_the_letter_however_it_is_written_or_the_text(answer: str, here: float, there: float) -> None:
    assert both("scienceqa", SQA, answer) == (here, there)


@pytest.mark.parametrize(
    ("answer", "here", "there"),
    [("B", 1, 1), ("b", 1, 1), ("B. two", 1, 1), ("(B)", 1, 0), ("Both", 0, 1), ("A", 0, 0), ("", 0, 0)],
)
def test_seedbench_takes_a_letter_that_no_word_begins_with(answer: str, here: float, there: float) -> None:
    assert both("seedbench", SEED, answer) == (here, there)


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
@pytest.mark.parametrize(
    ("answer", "here", "there"),
    [("B", 1, 1), ("B.", 1, 1), ("(B)", 1, 1), ("The answer is B.", 1, 1), ("\u7b54\u6848\u662fB\u3002", 1, 1),
     ("A", 0, 0), ("apple", 0, 0), ("A banana", 0, 0), ("It is a banana.", 1, 0), ("Both are there", 0, 1), ("", 0, 0),
     ("apple or banana", 0, 0)],
)  # fmt: skip
def test_mmbench_takes_letter_or_text_and_never_guesses(name: str, answer: str, here: float, there: float) -> None:
    """Upstream finds the absent option "nan" in "banana", and the letter B in "Both"."""
    assert both(name, MMBENCH, answer) == (here, there)


def test_mmbench_circle_is_right_only_if_every_rotation_is() -> None:
    turns = [MMBENCH, MMBENCH | {"index": 1_000_007, "answer": "A", "A": "banana", "B": "apple"}]
    circle = [read("mmbench_en", doc, said) for doc, said in zip(turns, ("B", "banana"), strict=True)]
    broken = [read("mmbench_en", doc, "B") for doc in turns]
    assert aggregators.metrics("mmbench_en", circle) == {"gpt_eval_score": 100}
    assert aggregators.metrics("mmbench_en", broken) == {"gpt_eval_score": 0}
    assert scoring.circular_percent([each["gpt_eval_score"] for each in circle + broken[1:]]) == 0


@pytest.mark.parametrize("hint", ["nan", "", None, float("nan")])
def test_mmbench_cn_asks_in_chinese_only(hint: Any) -> None:
    told = task("mmbench_cn").task.doc_to_text(MMBENCH | {"question": "\u8fd9\u662f\u4ec0\u4e48?", "hint": hint})
    post = upstream.config("mmbench_cn")["lmms_eval_specific_kwargs"]["default"]["post_prompt"]
    assert told == f"\u8fd9\u662f\u4ec0\u4e48?\nA. apple\nB. banana\n{post}"


def test_mmbench_prompts_with_a_hint_begin_with_it() -> None:
    doc = MMBENCH | {"hint": "Look."}
    assert task("mmbench_cn").task.doc_to_text(doc).startswith("Look. What is it?\nA. apple\nB. banana\n\n")
    assert task("mmbench_en").task.doc_to_text(doc) == upstream.prompt("mmbench_en", doc)
    assert "nan" not in task("mmbench_en").task.doc_to_text(MMBENCH | {"B": "plum"})


def vqa(name: str, words: list[str], answer: str) -> float:
    answers: list[Any] = list(words)
    if name == "vqav2":
        answers = [{"answer": w, "answer_id": n, "answer_confidence": "yes"} for n, w in enumerate(words)]
    doc = {"question_id": 1, "question": "What?", "answers": answers}
    return float(read(name, doc, answer)["exact_match"])


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
def test_vqa_accuracy_leaves_each_annotator_out_in_turn(name: str) -> None:
    """Three of ten say red: for those three 2 others do (2/3), for the other seven all 3 do (1): 0.9."""
    assert vqa(name, ["red"] * 3 + ["blue"] * 7, "red") == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa(name, ["red"] * 2 + ["blue"] * 8, "red") == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa(name, ["red"] * 1 + ["blue"] * 9, "red") == pytest.approx(9 / 30)
    assert vqa(name, ["red"] * 4 + ["blue"] * 6, "red") == 1
    assert vqa(name, ["red"] * 10, "green") == 0


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
def test_vqa_answers_are_normalised_as_evalai_does(name: str) -> None:
    for said in ("2", "Two", "two.", "the two"):
        assert vqa(name, ["two"] * 10, said) == 1, said


def test_vizwiz_unanswerable_is_an_answer() -> None:
    words = ["unanswerable"] * 6 + ["red"] * 4
    assert [vqa("vizwiz", words, said) for said in ("Unanswerable", "unanswerable.", "red", "")] == [1, 1, 1, 0]
    (request, *_) = task("vizwiz").requests
    assert "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the" in request.text


def test_textvqa_has_two_protocols_and_both_lower_the_question() -> None:
    doc = {"question": "What does the STOP sign say?", "ocr_tokens": ["STOP", "5th"]}
    tail = "\nAnswer the question using a single word or phrase."
    without, given = (lmms_eval_adapter.build("textvqa", TOY_DATA, limit=1, ocr=ocr).task for ocr in (False, True))
    assert without.doc_to_text(doc) == f"What does the stop sign say?{tail}"
    assert given.doc_to_text(doc) == f"What does the stop sign say?\nReference OCR token: STOP, 5th{tail}"


@pytest.mark.parametrize(("answer", "score"), [("Yes.", 1), ("yes, it is", 1), ("y", 1), ("no", 0), ("maybe", 0)])
def test_mme_scores_yes_and_no_for_its_part_and_the_sum(answer: str, score: float) -> None:
    doc = {"question_id": "a", "category": "color", "answer": "Yes", "question": "Is it red?"}
    found = read("mme", doc, answer)
    assert (
        found["mme_total_score"]
        == found["mme_perception_score"]
        == {"question_id": "a", "category": "color", "score": score}
    )


def test_mme_sum_has_cognition_in_it() -> None:
    doc = {"question_id": "a", "category": "code_reasoning", "answer": "No", "question": "Is it 3?"}
    assert set(read("mme", doc, "no")) == {"mme_cognition_score", "mme_total_score"}


def test_gqa_ignores_case_and_punctuation_and_loads_nothing_from_the_hub() -> None:
    config = task("gqa").task.config
    assert config.process_docs is None
    assert config.dataset_path == "parquet"
    assert [read("gqa", {"answer": "left"}, said)["exact_match"] for said in ("Left.", "left side")] == [1, 0]


def test_the_named_subset_is_the_same_in_any_order_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SUBSET_SIZE", 20)
    rows = Dataset.from_dict({"question_id": list(range(100)), "question": [f"q{n}" for n in range(100)]})
    kept, turned = scoring.ten_thousand(rows), scoring.ten_thousand(rows.select(range(99, -1, -1)))
    assert len(kept) == 20
    assert kept["question_id"] == sorted(kept["question_id"])
    assert list(turned["question_id"]) == list(kept["question_id"])[::-1]
    assert list(kept["question_id"])[:5] == [10, 16, 31, 34, 35]


def test_seedbench_all_keeps_videos_that_have_frames() -> None:
    built = lmms_eval_adapter.build("seedbench_all", TOY_DATA, limit=None)
    kinds = list(built.task.test_docs_no_media()["data_type"])
    assert (kinds.count("image"), kinds.count("video")) == (200, 4)
    groups = [built.image_group(request) for request in built.requests]
    assert groups[200:] == groups[:4]  # of the mirror's eight frames the middle one is the image of the question
    rows = Dataset.from_dict({"image": [["a"], [], ["b", "c"], None], "n": [0, 1, 2, 3]})
    assert list(scoring.with_frames(rows)["n"]) == [0, 2]


def jpeg(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 24), (grey, grey, grey)).save(stream, "JPEG")
    return stream.getvalue()


def seed_root(folder: Path, rows: list[list[int]]) -> Path:
    """Write SEED-Bench with a question per list of frames, which are grey; one frame is an image, several a video."""
    texts = {"question": "Which?", "choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d", "answer": "A"}
    table = Dataset.from_list(
        [
            texts
            | {"question_id": str(n), "data_type": "video" if len(frames) > 1 else "image"}
            | {"image": [{"bytes": jpeg(grey), "path": None} for grey in frames]}
            for n, frames in enumerate(rows)
        ]
    ).cast_column("image", List(ImageColumn()))
    (folder / "SEED-Bench" / "data").mkdir(parents=True)
    table.to_parquet(folder / "SEED-Bench" / "data" / "test-00000-of-00001.parquet")
    return folder


def test_a_video_is_its_middle_frame_in_image_hash_and_group(tmp_path: Path) -> None:
    """Of eight frames the fifth, of three the second; a question on the same picture shares its group."""
    root = seed_root(tmp_path, [[90], list(range(50, 130, 10)), [10, 20, 30], [90]])
    built = lmms_eval_adapter.build("seedbench_all", root, limit=None)
    shown = [built.images(request) for request in built.requests]
    assert [len(images) for images in shown] == [1] * 4
    greys = [round(float(np.asarray(image).mean())) for (image,) in shown]
    assert greys == [90, 90, 20, 90]
    hashes = [built.image_hashes(request) for request in built.requests]
    assert hashes == [(sha256(jpeg(grey)).hexdigest()[:16],) for grey in greys]
    groups = [built.image_group(request) for request in built.requests]
    assert groups[0] == groups[1] == groups[3] != groups[2]
    images_alone = lmms_eval_adapter.build("seedbench", root, limit=None)
    assert len(images_alone.requests) == 2


def test_textvqa_and_vizwiz_keep_the_letters_of_a_question_in_llavas_wording() -> None:
    doc = {"question": "what does the STOP sign say?", "ocr_tokens": ["STOP", "5th"], "answers": []}
    for name in ("textvqa", "vizwiz"):
        for ocr in (False, True):
            theirs, llavas = (
                lmms_eval_adapter.build(name, TOY_DATA, limit=1, ocr=ocr, wording=wording).task.doc_to_text(doc)
                for wording in ("lmms-eval", "llava")
            )
            assert theirs.startswith("What does the stop sign say?")
            assert llavas == "what does the STOP sign say?" + theirs.removeprefix("What does the stop sign say?")
            assert ("\nReference OCR token: STOP, 5th\nAnswer the question" in llavas) == (ocr and name == "textvqa")


MMBENCH_LLAVA = {
    "mmbench_en": "Answer with the option's letter from the given choices directly.",
    "mmbench_cn": "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002",
}


@pytest.mark.parametrize("name", list(MMBENCH_LLAVA))
def test_mmbench_in_llavas_wording(name: str) -> None:
    """The hint on a line of its own, the options, and LLaVA's sentence; nothing between them."""
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=4, wording="llava")
    for hint, first in (("nan", ""), ("Look.", "Look.\n")):
        text = built.task.doc_to_text(MMBENCH | {"hint": hint})
        assert text == f"{first}What is it?\nA. apple\nB. banana\n{MMBENCH_LLAVA[name]}"


@pytest.mark.parametrize("name", ["gqa", "mme", "pope", "scienceqa", "vqav2", "seedbench"])
def test_the_other_tasks_are_worded_alike(name: str) -> None:
    theirs, llavas = (lmms_eval_adapter.build(name, TOY_DATA, limit=20, wording=w) for w in ("lmms-eval", "llava"))
    assert [request.text for request in theirs.requests] == [request.text for request in llavas.requests]


def test_a_task_in_llavas_wording_is_scored_by_its_own_prompts() -> None:
    built = lmms_eval_adapter.build("mmbench_en", TOY_DATA, limit=8, wording="llava")
    answers = {(r.doc_id, r.text): built.task.test_docs_no_media()[r.doc_id]["answer"] for r in built.requests}
    assert lmms_eval_scores.score(built, "cell", answers).metrics == {"gpt_eval_score": 100}
