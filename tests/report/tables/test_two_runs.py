"""What changed between two runs, and whether it is more than noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make_answer, make_record, write_run

from dpbench.errors import ConfigError
from dpbench.report.tables import two_runs

RIGHT = np.random.default_rng(0).random(200) < 0.6


def run(folder: Path, right: np.ndarray, *, samples: bool = True, **cell: object) -> Path:
    each = make_record("grid", 16, "gqa", float(100 * right.mean()), **cell)
    answers = [make_answer("gqa", at, f"image {at}", {"exact_match": float(hit)}) for at, hit in enumerate(right)]
    return write_run(folder, [each], {each.cell_id: answers} if samples else {})


def verdicts(first: Path, second: Path) -> list[str]:
    return list(two_runs.sections(first, second, 500)[1].frame["Verdict"])


def test_the_same_run_twice_is_identical(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", RIGHT), run(tmp_path / "b", RIGHT)
    assert verdicts(first, second) == ["identical"]
    what, _ = two_runs.sections(first, second, 50)
    assert not what.rows
    assert what.notes == ("Nothing in the records: same protocol, weights, data, code, versions and machine.",)


def test_a_few_flipped_answers_are_noise_and_many_are_not(tmp_path: Path) -> None:
    few, many = RIGHT.copy(), RIGHT.copy()
    few[:3] ^= True
    many[np.flatnonzero(~many)[:40]] = True
    first = run(tmp_path / "a", RIGHT)
    assert verdicts(first, run(tmp_path / "few", few)) == ["noise"]
    assert verdicts(first, run(tmp_path / "many", many)) == ["more than noise"]


def test_other_samples_are_compared_unpaired(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", RIGHT), run(tmp_path / "b", RIGHT[:100])
    _, scores = two_runs.sections(first, second, 500)
    assert scores.frame["Paired"].tolist() == [False]
    assert any("unpaired" in note for note in scores.notes)
    low, high = scores.frame["Low"][0], scores.frame["High"][0]
    assert high - low > 15  # as wide as two samples of 200 and 100 are apart by chance


def test_without_samples_nothing_is_claimed(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", RIGHT), run(tmp_path / "b", ~RIGHT, samples=False)
    assert verdicts(first, second) == ["unknown: no samples"]


def test_circumstances_that_differ_are_listed(tmp_path: Path) -> None:
    first = run(tmp_path / "a", RIGHT, dtype="float32", fingerprints={"torch": "2.1", "source": "x"})
    second = run(tmp_path / "b", RIGHT, dtype="float16", fingerprints={"torch": "2.2", "source": "x"})
    what, _ = two_runs.sections(first, second, 50)
    assert [[cell.text for cell in row.cells] for row in what.rows] == [
        ["dtype", "float32", "float16"],
        ["torch", "2.1", "2.2"],
    ]


def test_another_machine_is_listed(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [make_record("grid", 16, "gqa", 50.0)])
    other = replace(
        make_record("grid", 16, "gqa", 50.0), environment={"device": "cuda", "gpu": "H100", "cpu": "a processor"}
    )
    what, _ = two_runs.sections(first, write_run(tmp_path / "b", [other]), 50)
    assert [row.cells[0].text for row in what.rows] == ["environment: device", "environment: gpu"]


def test_nothing_in_common_is_one_sentence(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [make_record("grid", 16, "gqa", 50.0)])
    second = write_run(tmp_path / "b", [make_record("grid", 32, "gqa", 50.0)])
    with pytest.raises(ConfigError, match="have no method, budget and benchmark in common"):
        two_runs.sections(first, second)


def test_accuracy_is_not_subtracted_from_f1(tmp_path: Path) -> None:
    """POPE's score was accuracy in earlier versions; both are in the record, so that the score tells which it is."""
    metrics = {"pope_accuracy": 0.8, "pope_f1_score": 0.7}
    folders = [
        write_run(tmp_path / name, [replace(make_record("grid", 16, "pope", score), metrics=metrics)])
        for name, score in (("old", 80.0), ("new", 70.0))
    ]
    scores = two_runs.sections(*folders, 50)[1]
    assert verdicts(*folders) == ["other quantities"]
    assert scores.frame["Difference"].isna().all()
    assert "POPE: the first is pope_accuracy, the second pope_f1_score; run the older again." in scores.notes
    assert verdicts(folders[1], folders[1]) == ["unknown: no samples"]
