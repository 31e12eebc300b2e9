"""From records to tables: a committed file gives the committed Markdown."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpbench import record, tasks
from dpbench.record import Profile, Record
from dpbench.report import tables

HERE = Path(__file__).parent
CELL = {
    "backbone": "toy-llava", "weights": None, "revision": None, "method": "none", "params": {}, "keep": None,
    "prune_rate": None, "budget_kind": "mean", "task": "pope", "prompt": "template", "ocr": False, "dtype": "float32",
    "attention": "sdpa", "anyres": "per-view", "newline": "drop", "seed": 0, "limit": 30, "fingerprints": {},
}  # fmt: skip


def made(method: str, keep: int | None, task: str, score: float, **cell: object) -> Record:
    return Record(
        cell_id=f"{method}-{keep}-{task}-{cell}",
        cell={**CELL, "method": method, "keep": keep, "task": task, **cell},
        metrics={},
        score=score,
        num_samples=30,
        num_failed=0,
        visual_tokens_per_layer=(float(keep or 144),) * 2,
        wall_s=1.0,
        finished="2026-11-24T12:00:00+00:00",
        versions={},
        environment={"device": "cpu", "cpu": "a processor"},
    )


RECORDS = [
    made("none", None, "pope", 80.0),
    made("none", None, "gqa", 50.0),
    made("random", 16, "pope", 60.0),
    made("random", 16, "gqa", 40.0),
    made("grid", 32, "pope", 80.0),
]


def test_retention_is_the_mean_over_benchmarks_of_score_by_unpruned_score() -> None:
    (section,) = tables.comparison_sections(RECORDS)
    rows = section.frame.set_index("Method")[tables.RETENTION]
    assert rows["none"] == 100
    assert rows["random @ 16"] == pytest.approx((60 / 80 + 40 / 50) / 2 * 100)
    assert rows["grid @ 32"] == 100  # over the one benchmark it has


def test_a_benchmark_that_was_not_run_is_a_dash_not_a_zero() -> None:
    (section,) = tables.comparison_sections(RECORDS)
    line = next(line for line in tables.render(section, "markdown").splitlines() if "grid @ 32" in line)
    assert [cell.strip() for cell in line.split("|")[3:5]] == ["-", "80.0"]


def test_without_the_unpruned_model_there_is_no_retention_and_a_note() -> None:
    (section,) = tables.comparison_sections(RECORDS[2:])
    assert section.frame[tables.RETENTION].isna().all()
    assert any("no cell of method none" in note for note in section.notes)


def test_protocols_never_share_a_table() -> None:
    assert len(tables.comparison_sections([*RECORDS, made("none", None, "pope", 1.0, limit=None)])) == 2


def test_seeds_are_averaged_and_said() -> None:
    (section,) = tables.comparison_sections([*RECORDS, made("random", 16, "pope", 70.0, seed=1)])
    assert section.frame.set_index("Method").loc["random @ 16", "POPE"] == 65
    assert "Mean over 2 seeds." in section.notes


def test_columns_are_in_the_papers_order() -> None:
    every = [made("none", None, name, 50.0) for name in reversed(tasks.TASKS)]
    (section,) = tables.comparison_sections(every)
    assert list(section.frame.columns)[2:-1] == [task.title for task in tasks.TASKS.values()]


def test_a_committed_file_gives_the_committed_markdown(tmp_path: Path) -> None:
    for each in RECORDS:
        record.append(tmp_path / "records.jsonl", each)
    assert (tmp_path / "records.jsonl").read_bytes() == (HERE / "records.jsonl").read_bytes()
    wanted = (HERE / "comparison.md").read_text(encoding="utf-8")
    assert tables.report([tmp_path], "markdown") + "\n" == wanted


def profiled(method: str, times: tuple[float, ...], **environment: str) -> Profile:
    return Profile(
        backbone="toy-llava",
        weights="package",
        method=method,
        params={},
        budget="16",
        num_visual=16,
        num_prompt=30,
        stages_ms={"encode": times, "total": times},
        warmups=1,
        stages_flops={"encode": 2_000_000_000, "total": 2_000_000_000},
        environment={"device": "cpu", "cpu": "a processor", **environment},
    )


def test_profiles_show_medians_and_flops() -> None:
    (section,) = tables.profile_sections([profiled("grid", (1.0, 9.0, 2.0))])
    row = section.frame.iloc[0]
    assert (row["Encode ms"], row["Total GFLOP"], row["Tokens"]) == (2.0, 2.0, 16)


def test_profiles_of_different_machines_never_share_a_table() -> None:
    here, there = profiled("grid", (1.0,)), profiled("grid", (1.0,), cpu="another processor")
    assert len(tables.profile_sections([here, there, profiled("random", (1.0,))])) == 2
    assert len(tables.profile_sections([here, profiled("random", (1.0,), gpu_clock_mhz="1200")])) == 1


def test_scattered_times_are_flagged() -> None:
    steady, wild = (1.0, 1.0, 1.01, 1.0) * 5, (1.0, 5.0, 9.0, 2.0) * 5
    assert not any("Unstable" in note for note in tables.profile_sections([profiled("grid", steady)])[0].notes)
    assert any("Unstable: grid" in note for note in tables.profile_sections([profiled("grid", wild)])[0].notes)


def test_csv_has_one_line_a_row() -> None:
    (section,) = tables.comparison_sections(RECORDS)
    assert tables.render(section, "csv").splitlines()[0] == "Method,Tokens,GQA,POPE,Retention"


def test_a_retention_of_nothing_is_nothing() -> None:
    assert tables.retention({"pope": 50.0}, {}) is None
    assert tables.retention({"pope": 50.0}, {"pope": 0.0}) is None


def test_folders_are_found_under_results(tmp_path: Path) -> None:
    record.append(tmp_path / "a" / "records.jsonl", replace(RECORDS[0]))
    assert tables.runs_under(tmp_path) == [tmp_path / "a"]
