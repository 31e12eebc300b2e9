"""Data that cannot be scored is refused: samples without a right answer, circles and pairs with parts missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import TOY_DATA
from typer.testing import CliRunner

from dpbench import tasks
from dpbench.cli.commands import app
from dpbench.errors import ConfigError
from dpbench.tasks import lmms_eval_adapter, lmms_eval_scores
from dpbench.tasks.aggregators import ROTATION
from dpbench.tasks.data.root import data_files

Row = dict[str, Any]
SCORED = [name for name, task in tasks.TASKS.items() if task.metric]
ABSENT: dict[str, list[Any]] = {
    "gqa": [None, "", "  ", "-", "N/A", "nan"],
    "mmbench_en": [None, "", "nan", "E", "?"],
    "mmbench_cn": [None, "", "nan", "E"],
    "mme": [None, "", "maybe"],
    "pope": [None, "", "n/a"],
    "scienceqa": [None, -1, 9],
    "vqav2": [None, [], [None] * 10],
    "textvqa": [None, [], ["", " "], ["N/A"] * 10],
    "seedbench": [None, "", "E"],
    "vizwiz": [None, [], [""], ["-"] * 10],
}
"""By task, what a document without a usable answer may have."""


def changed(root: Path, name: str, change: Callable[[list[Row]], list[Row]], num: int = 24) -> Path:
    """Write the first rows of a benchmark's toy data with some of them changed, and its images if they are apart."""
    path, *_ = data_files(name, TOY_DATA)
    table = pq.read_table(path)
    target = (root / path.relative_to(TOY_DATA)).with_name(f"{tasks.find(name).split}-00000-of-00001.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()[:num]), schema=table.schema), target)
    if images := tasks.find(name).images:
        for each in data_files(name, TOY_DATA, images):
            link = root / each.relative_to(TOY_DATA)
            link.parent.mkdir(parents=True)
            link.symlink_to(each)
    return root


def truth(name: str) -> str:
    return "answers" if "answers" in tasks.find(name).columns else "answer"


@pytest.mark.parametrize(("name", "absent"), [(name, value) for name in SCORED for value in ABSENT[name]])
def test_a_document_without_an_answer_is_refused_and_named(tmp_path: Path, name: str, absent: Any) -> None:
    root = changed(tmp_path, name, lambda rows: [*rows[:5], rows[5] | {truth(name): absent}, *rows[6:]])
    with pytest.raises(ConfigError) as raised:
        lmms_eval_adapter.build(name, root, limit=None)
    message = str(raised.value)
    assert f"task {name}: 1 of 24 samples have no answer that could be right, the first: " in message
    row = changed(tmp_path / "kept", name, lambda rows: rows)
    doc = lmms_eval_adapter.build(name, row, limit=None).task.test_docs_no_media()[5]
    key = next((column for column in ("index", "question_id", "id") if column in doc), None)
    assert (f"{key} {doc[key]!r}, " if key else "row 5, ") in message
    assert f"dpbench data pull {name}" in message


@pytest.mark.parametrize("name", SCORED)
def test_whole_data_is_accepted_and_rows_that_are_not_asked_may_lack_answers(tmp_path: Path, name: str) -> None:
    root = changed(tmp_path, name, lambda rows: [*rows[:16], *(row | {truth(name): None} for row in rows[16:])])
    assert 4 <= len(lmms_eval_adapter.build(name, root, limit=4).requests) <= 8


def test_a_task_that_only_its_server_scores_needs_no_answers(tmp_path: Path) -> None:
    root = changed(tmp_path, "vqav2", lambda rows: [row | {"answers": None} for row in rows])
    (path,) = data_files("vqav2", root)
    path.rename(path.with_name(path.name.replace("validation", "testdev")))
    assert lmms_eval_adapter.build("vqav2_testdev", root, limit=None).requests


TEN = [str(number) for number in range(10)]


@pytest.mark.parametrize("name", ["textvqa", "vizwiz", "vqav2"])
@pytest.mark.parametrize("words", [TEN[:9], [*TEN, "10"], [*TEN[:9], None], ["one"]])
def test_vqas_accuracy_needs_ten_answers_for_it_is_never_whole_with_fewer(
    tmp_path: Path, name: str, words: list[Any]
) -> None:
    answers = [{"answer": word} for word in words] if name == "vqav2" else words
    root = changed(tmp_path, name, lambda rows: [*rows[:5], rows[5] | {"answers": answers}, *rows[6:]])
    with pytest.raises(ConfigError, match=r"1 of 24 samples do not have 10 answers, the first: question_id .*5"):
        lmms_eval_adapter.build(name, root, limit=None)


@pytest.mark.parametrize("name", ["textvqa", "vizwiz"])
def test_unanswerable_is_an_answer_and_one_empty_of_ten_is_none_of_them(tmp_path: Path, name: str) -> None:
    rare = [["unanswerable"] * 10, ["K"] * 9 + [""]]
    root = changed(
        tmp_path, name, lambda rows: [row | {"answers": each} for row, each in zip(rows, rare, strict=False)]
    )
    assert len(lmms_eval_adapter.build(name, root, limit=None).requests) == 2


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn", "seedbench", "pope", "mme"])
@pytest.mark.parametrize("write", [str.lower, str.upper, " {} ".format, "{}\n".format])
def test_a_truth_that_is_accepted_can_be_met(tmp_path: Path, name: str, write: Callable[[str], str]) -> None:
    root = changed(tmp_path, name, lambda rows: [row | {"answer": write(row["answer"])} for row in rows])
    built = lmms_eval_adapter.build(name, root, limit=None)
    docs = built.task.test_docs_no_media()
    answers = {(request.doc_id, request.text): docs[request.doc_id]["answer"].strip() for request in built.requests}
    assert lmms_eval_scores.percent(name, lmms_eval_scores.score(built, "right", answers)) == 100


@pytest.mark.parametrize("name", ["gqa", "pope", "vqav2", "textvqa", "vizwiz", "seedbench"])
def test_a_sample_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    root = changed(tmp_path, name, lambda rows: [*rows, rows[3]])
    with pytest.raises(
        ConfigError, match=r"1 of 25 samples are there twice, the first: (question_id|id) .*[34](.jpg)?'?;"
    ):
        lmms_eval_adapter.build(name, root, limit=None)


@pytest.mark.parametrize("name", ["pope", "mme"])
@pytest.mark.parametrize("category", [None, "hard"])
def test_a_category_that_would_be_one_more_part_of_the_mean_is_refused(
    tmp_path: Path, name: str, category: str | None
) -> None:
    root = changed(tmp_path, name, lambda rows: [row | {"category": category} for row in rows[:2]] + rows[2:])
    with pytest.raises(ConfigError, match=rf"2 of 24 samples have a category that .*, category {category!r};"):
        lmms_eval_adapter.build(name, root, limit=None)


def test_popes_questions_without_any_categories_are_one_split(tmp_path: Path) -> None:
    root = changed(tmp_path, "pope", lambda rows: [row | {"category": None} for row in rows])
    assert len(lmms_eval_adapter.build("pope", root, limit=None).requests) == 24


def test_files_without_rows_or_cut_short_are_named(tmp_path: Path) -> None:
    root = changed(tmp_path, "pope", lambda rows: [])
    with pytest.raises(
        ConfigError, match=r"pope: .*test-00000-of-00001.parquet has no rows; .* dpbench data pull pope"
    ):
        lmms_eval_adapter.build("pope", root, limit=None)
    (path,) = data_files("pope", root)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"test-00000-of-00001.parquet is truncated or not a parquet file \("):
        lmms_eval_adapter.build("pope", root, limit=None)


@pytest.mark.parametrize("limit", [None, 4])
def test_a_rotation_without_a_number_is_refused(tmp_path: Path, limit: int | None) -> None:
    root = changed(tmp_path, "mmbench_en", lambda rows: [*rows[:5], rows[5] | {"index": None}, *rows[6:]])
    with pytest.raises(ConfigError, match=r"1 of 24 samples have no number, the first: row 5, index None"):
        lmms_eval_adapter.build("mmbench_en", root, limit=limit)


def without(rows: list[Row], *indices: int) -> list[Row]:
    return [row for row in rows if row["index"] not in indices]


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
@pytest.mark.parametrize("limit", [None, 4])
def test_a_circle_without_one_of_its_rotations_is_refused(tmp_path: Path, name: str, limit: int | None) -> None:
    root = changed(tmp_path, name, lambda rows: without(rows, 2 * ROTATION + 1))
    with pytest.raises(ConfigError, match=r"1 circles .* index 1 has 4 options and the rotations \[0, 1, 3\]; .*pull"):
        lmms_eval_adapter.build(name, root, limit=limit)


def test_a_circle_with_a_rotation_twice_or_without_the_first_is_refused(tmp_path: Path) -> None:
    def doubled(rows: list[Row]) -> list[Row]:
        return [row | {"index": 1} if row["index"] == ROTATION + 1 else row for row in rows]

    with pytest.raises(ConfigError, match=r"index 1 has 4 options and the rotations \[0, 0, 2, 3\]"):
        lmms_eval_adapter.build("mmbench_en", changed(tmp_path / "a", "mmbench_en", doubled), limit=None)
    first = changed(tmp_path / "b", "mmbench_en", lambda rows: without(rows, *range(ROTATION)))
    with pytest.raises(ConfigError, match=r"6 circles .* index 0 has 4 options and the rotations \[1, 2, 3\]"):
        lmms_eval_adapter.build("mmbench_en", first, limit=None)


def turned(options: list[str], answer: str) -> Callable[[list[Row]], list[Row]]:
    """Return a change to one circle with these options, turned as often as there are options."""

    def change(rows: list[Row]) -> list[Row]:
        circle = []
        for turn in range(len(options)):
            texts = [*options[turn:], *options[:turn]]
            letters = dict(zip("ABCD", [*texts, "nan", "nan", "nan"], strict=False))
            right = "ABCD"[texts.index(answer)]
            circle.append(rows[0] | letters | {"index": 3 + turn * ROTATION, "answer": right})
        return circle

    return change


@pytest.mark.parametrize("options", [["cat", "dog"], ["cat", "dog", "bird"], ["cat", "nan", "bird"]])
def test_a_circle_has_as_many_rotations_as_options_of_which_one_may_look_absent(
    tmp_path: Path, options: list[str]
) -> None:
    root = changed(tmp_path, "mmbench_en", turned(options, "cat"))
    assert len(lmms_eval_adapter.build("mmbench_en", root, limit=None).requests) == len(options)


def test_an_image_with_one_question_of_mmes_pair_is_refused(tmp_path: Path) -> None:
    root = changed(tmp_path, "mme", lambda rows: [*rows[:3], *rows[4:]])
    with pytest.raises(ConfigError, match=r"1 images do not have two questions, the first: question_id '.*' of \w+"):
        lmms_eval_adapter.build("mme", root, limit=None)


def test_an_image_with_the_same_question_twice_is_no_pair_of_mmes(tmp_path: Path) -> None:
    root = changed(tmp_path, "mme", lambda rows: [*rows[:3], rows[2], *rows[4:]])
    with pytest.raises(ConfigError, match=r"1 images do not have two questions, .* has 1 twice"):
        lmms_eval_adapter.build("mme", root, limit=None)


def test_a_run_over_a_broken_circle_ends_with_that_sentence_and_no_record(tmp_path: Path) -> None:
    root = changed(tmp_path, "mmbench_en", lambda rows: without(rows, ROTATION))
    line = ["run", "--method", "none", "--backbone", "toy-llava", "--tasks", "mmbench_en", "--data-root", str(root)]
    done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2
    assert not list(tmp_path.glob("out/records.jsonl"))
