"""The adapter: our tasks ask and score exactly as lmms-eval's own do, and the traps are closed."""

from pathlib import Path
from typing import Any

import pytest
import upstream
from lmms_eval.tasks import TaskManager
from places import TOY_DATA

from dpbench import tasks
from dpbench.errors import MissingError
from dpbench.tasks import lmms_eval_adapter, lmms_eval_scores


def truth(name: str, doc: dict[str, Any]) -> str:
    """Return a right answer, read from the benchmark's own columns."""
    if name == "scienceqa":
        return "ABCD"[doc["answer"]]
    if name == "vqav2":
        return doc["multiple_choice_answer"]
    if name in ("textvqa", "vizwiz"):
        return max(doc["answers"], key=doc["answers"].count)
    return doc["answer"].lower() if name in ("mme", "pope") else doc["answer"]


@pytest.fixture(scope="module", params=list(tasks.TASKS))
def built(request: pytest.FixtureRequest) -> lmms_eval_adapter.BuiltTask:
    return lmms_eval_adapter.build(request.param, TOY_DATA, limit=None)


def answers(built: lmms_eval_adapter.BuiltTask, wrong: int = 0) -> dict[tuple[int, str], str]:
    docs = built.task.test_docs_no_media()
    right = {(r.doc_id, r.text): truth(built.name, docs[r.doc_id]) for r in built.requests}
    return {key: "qqq" if n < wrong else value for n, (key, value) in enumerate(right.items())}


def test_the_prompt_is_upstreams_to_the_letter(built: lmms_eval_adapter.BuiltTask) -> None:
    docs = built.task.test_docs_no_media()
    for request in built.requests[::17]:
        wanted = upstream.prompt(built.name, docs[request.doc_id])
        if built.name == "mmbench_cn":
            wanted = wanted.removeprefix("nan ").replace(" There are several options:", "")
        assert request.text == wanted


def test_right_answers_score_a_hundred_and_wrong_ones_nothing(built: lmms_eval_adapter.BuiltTask) -> None:
    assert lmms_eval_scores.percent(
        built.name, lmms_eval_scores.score(built, "right", answers(built))
    ) == pytest.approx(100)
    nothing = dict.fromkeys(answers(built), "qqq")
    assert lmms_eval_scores.percent(built.name, lmms_eval_scores.score(built, "wrong", nothing)) == 0


def test_scoring_again_gives_the_new_cells_score(built: lmms_eval_adapter.BuiltTask) -> None:
    """The task object is shared between cells; nothing of one cell may stay for the next."""
    first = lmms_eval_scores.score(built, "a", answers(built)).metrics
    lmms_eval_scores.score(built, "b", dict.fromkeys(answers(built), "qqq"))
    assert lmms_eval_scores.score(built, "c", answers(built)).metrics == first


def test_every_sample_has_an_image_and_a_length_limit(built: lmms_eval_adapter.BuiltTask) -> None:
    assert 100 <= len(built.requests) <= 300
    for request in built.requests[::37]:
        (image,) = built.images(request)
        assert image.size == (96, 96)
        assert image.mode == "RGB"
        assert request.max_new_tokens in (8, 16, 32)


def test_one_samples_scores_are_plain_numbers_of_the_tasks_metric(built: lmms_eval_adapter.BuiltTask) -> None:
    request = built.requests[0]
    assert tasks.find(built.name).metric in built.scores(request, "yes")


@pytest.mark.parametrize(("name", "limit", "wanted"), [("mme", 5, 6), ("mmbench_en", 5, 8), ("pope", 5, 5)])
def test_a_limit_splits_no_group(name: str, limit: int, wanted: int) -> None:
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=limit)
    assert len(built.requests) == wanted
    lmms_eval_scores.score(built, "x", answers(built))


def test_seedbench_leaves_videos_out() -> None:
    built = lmms_eval_adapter.build("seedbench", TOY_DATA, limit=None)
    kinds = {doc["data_type"] for doc in built.task.test_docs_no_media()}
    assert kinds == {"image"}


def test_ocr_tokens_are_given_only_when_asked_for() -> None:
    without, given = (lmms_eval_adapter.build("textvqa", TOY_DATA, limit=2, ocr=ocr) for ocr in (False, True))
    assert "Reference OCR token" not in without.requests[0].text
    assert "Reference OCR token" in given.requests[0].text


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"task pope: no file matches .*POPE"):
        lmms_eval_adapter.build("pope", tmp_path, limit=None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="`dpbench data pull pope`"):
        lmms_eval_adapter.build("pope", None, limit=None)


def test_the_yaml_files_are_tasks_lmms_eval_can_find() -> None:
    folder = str(tasks.yaml_path("gqa").parent)
    found = TaskManager("ERROR", include_path=folder, include_defaults=False).all_tasks
    assert {f"dpb_{name}" for name in tasks.ALL} <= set(found)


def test_the_look_up_model_keeps_itself_and_names_its_cell() -> None:
    model = lmms_eval_scores.LookUp("abc", lambda doc_id, text: "yes")
    model.clean()
    assert repr(model) == "dpbench:abc"
    assert model.answer(0, "") == "yes"
