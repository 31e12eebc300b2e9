"""A run of one cell is one sentence: score, interval, questions, and the unpruned score if it is known."""

from dataclasses import replace
from pathlib import Path

import page_runs
import pytest
from made_records import make_record, write_run

from dpbench.report.terminal import single
from dpbench.storage import record
from dpbench.storage.record import Record


def of(folder: Path, method: str) -> Record:
    return next(row for row in record.read(folder / "records.jsonl", Record) if row.cell["method"] == method)


def test_score_interval_questions_and_the_unpruned_score(tmp_path: Path) -> None:
    run = page_runs.run(tmp_path / "run")
    text = single.describe(run, of(run, "grid"))
    assert text.startswith(f"grid at 16 on POPE: {page_runs.f1('grid'):.1f} of 100 [")
    assert text.endswith("], 5 questions; unpruned 100.0.")


def test_the_unpruned_score_is_found_in_a_run_beside_it_if_it_is_comparable(tmp_path: Path) -> None:
    row = make_record("grid", 16, "pope", 70.0)
    run = write_run(tmp_path / "grid", [row])
    assert single.describe(run, row) == "grid at 16 on POPE: 70.0 of 100, 40 questions."
    write_run(tmp_path / "a", [make_record("none", None, "pope", 91.0, limit=400)])
    write_run(tmp_path / "b", [make_record("none", None, "mme", 92.0)])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "records.jsonl").write_text("damaged\n")
    assert "unpruned" not in single.describe(run, row)
    write_run(tmp_path / "d", [make_record("none", None, "pope", 93.0)])
    assert single.describe(run, row).endswith("40 questions; unpruned 93.0.")


def test_other_data_or_weights_are_not_comparable(tmp_path: Path) -> None:
    row = make_record("grid", 16, "pope", 70.0, fingerprints={"data": "new"})
    run = write_run(tmp_path / "grid", [row])
    write_run(tmp_path / "a", [make_record("none", None, "pope", 91.0, fingerprints={"data": "old"})])
    assert "unpruned" not in single.describe(run, row)


@pytest.mark.parametrize("change", [0.0, -20.0])
def test_samples_that_do_not_give_the_score_give_no_interval(tmp_path: Path, change: float) -> None:
    run = page_runs.run(tmp_path / "run")
    row = of(run, "holov")
    text = single.describe(run, replace(row, score=row.score + change))
    assert ("[" in text) == (change == 0.0)


def test_the_unpruned_model_is_not_compared_to_itself(tmp_path: Path) -> None:
    run = page_runs.run(tmp_path / "run")
    assert single.describe(run, of(run, "none")) == "none at all on POPE: 100.0 of 100 [100.0, 100.0], 5 questions."
