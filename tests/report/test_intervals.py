"""Against `none` and against `random`: what a run's samples say, cached until a record changes."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make_answer, make_record, write_run

from dpbench.budget import BudgetRequest
from dpbench.errors import RecordError
from dpbench.report import intervals, retention, runs
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.tables import significance
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record
from dpbench.tasks import aggregators

NUM = 120
GENERATOR = np.random.default_rng(0)
LUCK = GENERATOR.random(NUM)
"""How easy each question is."""


def rights(share: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(NUM)
    return (0.7 * LUCK + 0.3 * noise) < share


def journal(task: str, right: np.ndarray) -> list[Answer]:
    """Return answers, two questions an image."""
    return [make_answer(task, at, f"image {at // 2}", {"exact_match": float(each)}) for at, each in enumerate(right)]


def run(
    folder: Path, rows: dict[tuple[str, int | None, int], float], tasks: tuple[str, ...] = ("gqa", "vqav2")
) -> Path:
    """Write a run whose rows (method, keep, seed) answer about that share of the questions right."""
    records: list[Record] = []
    journals = {}
    for (method, keep, seed), share in rows.items():
        for number, task in enumerate(tasks):
            right = rights(share, 7 * number + seed + len(method))
            each = make_record(method, keep, task, float(100 * right.mean()), seed=seed)
            records.append(each)
            journals[each.cell_id] = journal(task, right)
    return write_run(folder, records, journals)


def loaded(folder: Path) -> Comparison:
    (found,) = runs.comparisons([runs.load(folder)])
    return found


ROWS = {("none", None, 0): 0.8, ("random", 16, 0): 0.4, ("grid", 16, 0): 0.4, ("holov", 16, 0): 0.7}
GRID, HOLOV, RANDOM = (RowKey(BudgetRequest(keep=16), name, "{}") for name in ("grid", "holov", "random"))


def test_a_better_method_wins_and_its_like_cannot_be_told_from_random(tmp_path: Path) -> None:
    found = intervals.load_or_compute(loaded(run(tmp_path, ROWS)))
    assert found.like_random() == {GRID}
    assert significance.tally(found, HOLOV, "random") == {"win": 2, "tie": 0, "loss": 0}
    assert significance.tally(found, GRID, "random") == {"win": 0, "tie": 2, "loss": 0}
    assert significance.tally(found, RANDOM, "none") == {"win": 0, "tie": 0, "loss": 2}
    assert (RANDOM, "random", RETENTION) not in found.differences


def test_values_are_the_tables_own(tmp_path: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    found = intervals.load_or_compute(one)
    scores = {key: runs.scores_of(records) for key, records in one.rows.items()}
    none = one.find("none")
    assert none is not None
    for key in (GRID, HOLOV):
        each = found.differences[key, "random", "gqa"]
        assert each.value == pytest.approx(scores[key]["gqa"] - scores[RANDOM]["gqa"])
        assert each.low < each.value < each.high
        average = retention.retention(scores[key], scores[none])
        assert average is not None
        assert found.differences[key, "none", RETENTION].value == pytest.approx(average - 100)


def test_retention_is_recomputed_on_every_resample(tmp_path: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    cells, _ = intervals.load_usable(one)
    drawn = intervals.scores_by_task(one, cells, 500)
    none = one.find("none")
    assert none is not None
    shares = [100 * (drawn[task][HOLOV] - drawn[task][RANDOM]) / drawn[task][none] for task in ("gqa", "vqav2")]
    low, high = np.percentile(np.mean(shares, axis=0), [2.5, 97.5])
    found = intervals.compute(one, 500).differences[HOLOV, "random", RETENTION]
    assert (found.low, found.high) == pytest.approx((low, high))


def test_seeds_are_pooled(tmp_path: Path) -> None:
    rows = {**ROWS, ("random", 16, 1): 0.8}
    one = loaded(run(tmp_path, rows))
    found = intervals.load_or_compute(one)
    scores = {key: runs.scores_of(records) for key, records in one.rows.items()}
    assert len(one.of(RANDOM, "gqa")) == 2
    value = found.differences[GRID, "random", "gqa"].value
    assert value == pytest.approx(scores[GRID]["gqa"] - scores[RANDOM]["gqa"])
    drawn = intervals.scores_by_task(one, intervals.load_usable(one)[0], 500)
    assert drawn["gqa"][RANDOM].mean() == pytest.approx(scores[RANDOM]["gqa"], abs=1)


def test_benchmarks_on_the_same_images_draw_them_together(tmp_path: Path) -> None:
    records, journals = [], {}
    for task in ("gqa", "vqav2"):
        each = make_record("grid", 16, task, float(100 * rights(0.5).mean()))
        records.append(each)
        journals[each.cell_id] = journal(task, rights(0.5))
    one = loaded(write_run(tmp_path, records, journals))
    drawn = intervals.scores_by_task(one, intervals.load_usable(one)[0], 50)
    assert (drawn["gqa"][GRID] == drawn["vqav2"][GRID]).all()


def test_pairing_narrows_the_interval(tmp_path: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    cells, _ = intervals.load_usable(one)
    drawn = intervals.scores_by_task(one, cells, 2000)["gqa"]
    unpaired = drawn[HOLOV] - np.random.default_rng(0).permutation(drawn[RANDOM])
    assert (drawn[HOLOV] - drawn[RANDOM]).std() < unpaired.std()


def test_the_second_report_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    first = intervals.load_or_compute(one, 200)
    assert len(list((own_cache / "dpbench" / "intervals").glob("*.json"))) == 1
    monkeypatch.setattr(intervals, "compute", None)
    assert intervals.load_or_compute(one, 200) == first


def test_a_damaged_cache_is_computed_anew(tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = loaded(run(tmp_path, ROWS))
    first = intervals.load_or_compute(one, 200)
    (path,) = (own_cache / "dpbench" / "intervals").glob("*.json")
    for text in ("{", "[]", '{"differences": [[1]], "notes": []}'):
        path.write_text(text)
        with caplog.at_level(logging.WARNING):
            assert intervals.load_or_compute(one, 200) == first
        assert "is damaged" in caplog.text
        caplog.clear()


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert intervals.load_or_compute(loaded(run(tmp_path / "run", ROWS)), 50).differences
    assert "not cached" in caplog.text


def test_a_new_record_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    before = intervals.load_or_compute(one, 200)
    rows = {key: tuple(replace(each, finished="2027") for each in row) for key, row in one.rows.items()}
    assert intervals._hash(replace(one, rows=rows), 200) != intervals._hash(one, 200)
    assert before.differences


def test_without_samples_there_are_no_intervals_and_a_note(tmp_path: Path) -> None:
    one = loaded(write_run(tmp_path, [make_record("none", None, "gqa", 50.0), make_record("random", 16, "gqa", 40.0)]))
    found = intervals.load_or_compute(one)
    assert not found.differences
    assert found.notes == (
        "No intervals: there is no contributions.npz and no samples/ in the run folder; copy them from where it ran.",
    )
    assert significance.sections(one, found) == []


def test_samples_that_do_not_give_the_record_are_not_used(tmp_path: Path) -> None:
    folder = run(tmp_path, ROWS)
    one = loaded(folder)
    rows = {
        key: tuple(replace(each, score=each.score / 2) if key == HOLOV else each for each in row)
        for key, row in one.rows.items()
    }
    found = intervals.compute(replace(one, rows=rows), 50)
    assert not any(key[0] == HOLOV for key in found.differences)
    assert any("2 cells whose samples do not give the recorded score" in note for note in found.notes)


def test_cells_with_other_samples_have_no_intervals(tmp_path: Path) -> None:
    folder = run(tmp_path, ROWS)
    each = make_record("pool", 16, "gqa", 50.0)
    write_run(folder, [each], {each.cell_id: journal("gqa", rights(0.5))[: NUM // 2]})
    one = loaded(folder)
    score = 100 * rights(0.5)[: NUM // 2].mean()
    rows = {k: tuple(replace(e, score=score) if k.method == "pool" else e for e in row) for k, row in one.rows.items()}
    found = intervals.compute(replace(one, rows=rows), 50)
    assert any("1 cells with other samples" in note for note in found.notes)
    assert any(key[0] == GRID for key in found.differences)


def test_a_journal_of_another_schema_is_one_sentence(tmp_path: Path) -> None:
    folder = run(tmp_path, ROWS)
    path = next((folder / "samples").iterdir())
    path.write_text('{"schema": 99}\n')
    with pytest.raises(RecordError, match="journal schema 99"):
        intervals.load_or_compute(loaded(folder), 50)


def test_a_benchmark_the_unpruned_model_fails_drops_out_of_a_resample(tmp_path: Path) -> None:
    records, journals = [], {}
    for method, keep, right in (
        ("none", None, [1] * 4 + [0] * 16),
        ("random", 16, [0] * 20),
        ("grid", 16, [1] + [0] * 19),
    ):
        for task in ("gqa", "vqav2"):
            values = np.array(right if task == "gqa" else [1, 1, 0, 1, 1] * 4)
            each = make_record(method, keep, task, float(100 * values.mean()))
            records.append(each)
            journals[each.cell_id] = journal(task, np.repeat(values, 2))
    one = loaded(write_run(tmp_path, records, journals))
    drawn = intervals.scores_by_task(one, intervals.load_usable(one)[0], 300)["gqa"]
    assert any((scores_R == 0).any() for key, scores_R in drawn.items() if key.method == "none")
    each = intervals.compute(one, 300).differences[GRID, "random", RETENTION]
    assert np.isfinite([each.low, each.high]).all()


def test_retention_has_an_interval_over_exactly_the_benchmarks_that_count(tmp_path: Path) -> None:
    """GQA's 10 questions do not count: the difference is VQAv2's alone."""
    records, journals = [], {}
    for method, keep, share in (("none", None, 0.8), ("holov", 16, 0.4)):
        for task, num in (("gqa", 10), ("vqav2", NUM)):
            right = np.arange(num) % 10 < 10 * (share if task == "vqav2" else 0.1)
            each = replace(make_record(method, keep, task, float(100 * right.mean())), num_samples=num)
            records.append(each)
            journals[each.cell_id] = journal(task, right)
    one = loaded(write_run(tmp_path, records, journals))
    assert intervals.compute(one, 300).differences[HOLOV, "none", RETENTION].value == pytest.approx(-50)
    (tmp_path / "samples" / f"{records[3].cell_id}.jsonl").unlink()
    assert (HOLOV, "none", RETENTION) not in intervals.compute(loaded(tmp_path), 300).differences


def test_differences_are_shown_with_their_intervals(tmp_path: Path) -> None:
    one = loaded(run(tmp_path, ROWS))
    averages, against_none, against_random = significance.sections(one, intervals.load_or_compute(one))
    assert averages.columns[:3] == ("Method", "Minus none [95 %]", "p")
    line = next(row for row in against_random.rows if row.cells[0].text == "holov")
    assert line.cells[1].refs == ("*",)
    assert line.cells[1].text.startswith("+")
    assert set(against_none.frame["Against"]) == {"none"}
    assert {"Low", "High", "p (Holm)"} <= set(against_none.frame.columns)


def detected(method: str, keep: int | None, hits: float, false_alarms: float) -> tuple[Record, list[Answer]]:
    """Return POPE's record and answers: three questions an image of either kind, a split each."""
    random = np.random.default_rng(len(method))
    answers = []
    for at in range(6 * NUM):
        truth = at % 2 == 0
        said = random.random() < (hits if truth else false_alarms)
        found = {
            "prediction": "yes" if said else "no",
            "ground_truth": "yes" if truth else "no",
            "category": ("adversarial", "popular", "random")[at % 3],
        }
        answers.append(make_answer("pope", at, f"image {at // 6}", {"pope_f1_score": found}))
    score = 100 * aggregators.metrics("pope", [answer.scores for answer in answers])["pope_f1_score"]
    return make_record(method, keep, "pope", score), answers


def test_popes_f1_has_intervals_though_its_denominators_depend_on_the_answers(tmp_path: Path) -> None:
    """Two methods of nearly the same accuracy (74.5 and 75, in expectation) that F1 tells apart (74.6 and 67.5)."""
    parts = [detected("none", None, 0.9, 0.1), detected("random", 16, 0.52, 0.02), detected("grid", 16, 0.75, 0.26)]
    folder = write_run(tmp_path, [row for row, _ in parts], {row.cell_id: answers for row, answers in parts})
    one = loaded(folder)
    found = intervals.compute(one, 2000)
    assert not found.notes
    difference = found.differences[GRID, "random", "pope"]
    scores = {row.cell["method"]: row.score for row, _ in parts}
    assert difference.value == pytest.approx(scores["grid"] - scores["random"])
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p < 0.05
