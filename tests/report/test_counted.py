"""Which benchmarks count for retention: of at least 20 units, with an unpruned score clearly above chance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_records import make_answer, make_record, write_run
from places import RESULTS

from dpbench import tasks
from dpbench.manifest.reading import load_manifest
from dpbench.report import counted, runs
from dpbench.report.counted import Unpruned
from dpbench.report.runs import Comparison, Run
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record


def unpruned(task: str, score: float, num_samples: int) -> Record:
    return replace(make_record("none", None, task, score), num_samples=num_samples)


def compared(*records: Record) -> Comparison:
    (one,) = runs.comparisons([Run(Path("nowhere"), records, ())])
    return one


def test_every_benchmark_declares_its_chance() -> None:
    assert {name: round(task.chance, 1) for name, task in tasks.TASKS.items()} == {
        "gqa": 0, "mmbench_en": 25, "mmbench_cn": 25, "mme": 50, "pope": 66.7, "scienceqa": 40.1, "vqav2": 0,
        "textvqa": 0, "seedbench": 25, "vizwiz": 0,
    }  # fmt: skip
    assert {name: task.chance for name, task in tasks.VARIANTS.items()} == {
        "vqav2_val_10k": 0, "vqav2_testdev": 0, "seedbench_all": 25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "measured", "why"),
    [
        ("gqa", Unpruned(60.0, 19, 5.0), "19 questions, fewer than 20"),
        ("gqa", Unpruned(60.0, 20, 5.0), None),
        ("mme", Unpruned(90.0, 15, 5.0), "15 pairs, fewer than 20"),
        ("mmbench_en", Unpruned(90.0, 7, 5.0), "7 circles, fewer than 20"),
        ("seedbench", Unpruned(35.0, 40, 10.0), "unpruned 35.0 ± 10.0 is not clearly above chance, 25.0"),
        ("seedbench", Unpruned(35.0, 40, 9.9), None),
        ("pope", Unpruned(65.0, 400, 1.0), "unpruned 65.0 ± 1.0 is not clearly above chance, 66.7"),
        ("gqa", Unpruned(0.0, 400, 0.0), "unpruned 0.0 ± 0.0 is not clearly above chance, 0.0"),
        ("gqa", Unpruned(60.0, 40, None), "all questions are about one image"),
        ("gqa", None, "no unpruned score"),
    ],
)
def test_why_a_benchmark_does_not_count(task: str, measured: Unpruned | None, why: str | None) -> None:
    assert counted.why_not(task, measured) == why


def test_units_follow_from_the_number_of_samples_where_the_samples_are_missing() -> None:
    """30 samples are 30 questions, 15 pairs or 7 circles; 100 * 1.96 * sqrt(0.8 * 0.2 / 30) = 14.3."""
    rows = [unpruned(task, 80.0, 30) for task in ("vqav2", "mme", "mmbench_en")]
    found = counted.measure_unpruned(compared(*rows))
    assert {name: each.num_units for name, each in found.items()} == {"vqav2": 30, "mme": 15, "mmbench_en": 7}
    assert found["vqav2"].half == pytest.approx(14.31, abs=0.01)


def test_what_does_not_count_is_named_with_its_reason_for_all_rows_alike() -> None:
    rows = [unpruned(task, 80.0, 80) for task in ("vqav2", "mme", "mmbench_en")]
    one = compared(*rows, unpruned("pope", 70.0, 30), unpruned("gqa", 50.0, 10), make_record("grid", 16, "vqav2", 40.0))
    found = counted.find(one)
    assert found.tasks == ("mmbench_en", "mme", "vqav2")
    assert found.scope == "mean of 3 of 5 benchmarks"
    assert found.notes == (
        "Shown but left out of the average, for all rows: GQA (10 questions, fewer than 20); POPE (unpruned 70.0 ± "
        "16.4 is not clearly above chance, 66.7).",
    )


def test_without_the_unpruned_model_nothing_counts() -> None:
    found = counted.find(compared(make_record("grid", 16, "vqav2", 40.0)))
    assert (found.tasks, found.left_out) == ((), {"vqav2": "no unpruned score"})
    assert found.scope == "mean of 0 of 1 benchmark"


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        (("vqav2",), "mean of 1 of 1 benchmark"),
        (("vqav2", "gqa"), "mean of both benchmarks"),
        (("vqav2", "gqa", "textvqa"), "mean of all 3 benchmarks"),
    ],
)
def test_all_that_counts_leaves_no_note(names: Sequence[str], scope: str) -> None:
    found = counted.find(compared(*(unpruned(name, 80.0, 80) for name in names)))
    assert (found.notes, found.scope) == ((), scope)


def test_a_row_is_complete_with_every_benchmark_that_counts() -> None:
    pruned = make_record("grid", 16, "vqav2", 40.0), make_record("pool", 16, "gqa", 40.0)
    one = compared(unpruned("vqav2", 80.0, 80), unpruned("gqa", 80.0, 10), *pruned)
    complete = {key.method: counted.is_complete(one, key) for key in one.rows}
    assert complete == {"none": True, "grid": True, "pool": False}
    no_reference = compared(*pruned)
    assert not any(counted.is_complete(no_reference, key) for key in no_reference.rows)


def run_of(folder: Path, task: str, score: float, answers: Sequence[Answer]) -> Comparison:
    row = unpruned(task, score, len(answers))
    write_run(folder, [row], {row.cell_id: answers})
    (one,) = runs.comparisons([runs.load(folder)])
    return one


def questions(rights: Sequence[int], images: int) -> list[Answer]:
    return [make_answer("gqa", at, f"image {at % images}", {"exact_match": float(r)}) for at, r in enumerate(rights)]


def test_questions_on_one_image_are_not_independent(tmp_path: Path) -> None:
    """40 questions, half right: on 40 images 100 * 1.96 * sqrt(0.25 / 39) = 15.7; on 4 images two are all right."""
    right = [1, 0] * 20
    alone = counted.measure_unpruned(run_of(tmp_path / "a", "gqa", 50.0, questions(right, 40)))["gqa"]
    grouped = counted.measure_unpruned(run_of(tmp_path / "b", "gqa", 50.0, questions(right, 4)))["gqa"]
    assert (alone.num_units, grouped.num_units) == (40, 40)
    assert alone.half == pytest.approx(15.69, abs=0.01)
    assert grouped.half == pytest.approx(100 * 1.959964 * (0.25 / 3) ** 0.5, abs=0.01)
    single = run_of(tmp_path / "c", "gqa", 50.0, questions(right, 1))
    assert counted.find(single).left_out == {"gqa": "all questions are about one image"}


def circle(number: int, *, right: bool) -> list[Answer]:
    def scores(turn: int) -> Mapping[str, Any]:
        return {"gpt_eval_score": {"index": number + 1_000_000 * turn, "category": "a", "hit": right or turn > 0}}

    return [make_answer("mmbench_en", 2 * number + turn, f"image {number}", scores(turn)) for turn in range(2)]


def test_circles_are_counted_from_the_samples(tmp_path: Path) -> None:
    """40 samples are 20 circles of two options, where samples / 4 would be 10; a wrong turn fails its circle."""
    answers = [answer for number in range(20) for answer in circle(number, right=number < 15)]
    one = run_of(tmp_path, "mmbench_en", 75.0, answers)
    found = counted.measure_unpruned(one)["mmbench_en"]
    assert (found.num_units, found.score) == (20, 75.0)
    assert found.half == pytest.approx(100 * 1.959964 * (0.75 * 0.25 / 19) ** 0.5)
    assert counted.find(one).tasks == ("mmbench_en",)


def test_samples_scored_by_other_rules_are_not_read(tmp_path: Path) -> None:
    one = run_of(tmp_path, "gqa", 90.0, questions([1, 0] * 20, 4))
    assert counted.measure_unpruned(one)["gqa"].half == pytest.approx(100 * 1.959964 * (0.9 * 0.1 / 40) ** 0.5)


def test_a_changed_journal_is_read_again(tmp_path: Path) -> None:
    run_of(tmp_path, "gqa", 50.0, questions([1, 0] * 20, 40))
    one = run_of(tmp_path, "gqa", 50.0, [])
    before = counted.measure_unpruned(one)["gqa"].num_units
    (journal,) = (tmp_path / "samples").iterdir()
    journal.write_text("\n".join(journal.read_text().splitlines()[:20]) + "\n")
    assert (before, counted.measure_unpruned(one)["gqa"].num_units) == (40, 20)


def test_every_benchmark_counts_in_the_quickstart() -> None:
    """It asks every question, as the shipped run did."""
    quickstart = load_manifest(Path("quickstart"))
    assert quickstart.protocol.limit is None
    (one,) = runs.comparisons([runs.load(RESULTS / "toy-full")])
    assert counted.find(one).tasks == one.tasks == tuple(quickstart.tasks)
