"""What a run ends with: one cell in a sentence, several as a table, in a pipe as Markdown, a shard with nothing."""

from pathlib import Path

import page_runs
import pytest
from made_records import make_profile

from dpbench.cli import result
from dpbench.evaluation.outcome import Outcome
from dpbench.evaluation.sharding import Shard
from dpbench.report.tables.table import plain_section
from dpbench.report.terminal import screen
from dpbench.storage import record
from dpbench.storage.record import Record


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, tuple[Record, ...]]:
    folder = page_runs.run(tmp_path / "run")
    return folder, tuple(record.read(folder / "records.jsonl", Record))


def test_one_cell_is_a_sentence(finished: tuple[Path, tuple[Record, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = finished
    result.show(Outcome(added=rows[1:2]), folder)
    assert capsys.readouterr().out.startswith("grid at 16 on POPE: ")


def test_several_are_a_table_that_fits_or_markdown_in_a_pipe(
    finished: tuple[Path, tuple[Record, ...]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = finished
    result.show(Outcome(existing=rows), folder)
    assert "| grid " in capsys.readouterr().out
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    result.show(Outcome(existing=rows), folder)
    printed = capsys.readouterr().out
    assert "\ngrid " in printed
    assert "|" not in printed
    assert "--format html --out report.html" in printed


def test_what_was_timed_is_short_in_a_terminal_and_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [make_profile("none", "all", (144,)), make_profile("grid", "16", (16,))]
    result.show_profiles(profiles, Path("results/profile-cpu"))
    assert " Prefill (ms) |" in capsys.readouterr().out
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    result.show_profiles(profiles, Path("results/profile-cpu"))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "\ngrid " in printed
    assert "Prefill (ms)" not in printed
    assert "  dpbench report results/profile-cpu --full\n" in printed


def test_tables_fit_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("Method", *(f"Stage {at} GFLOP" for at in range(8)))
    table = plain_section("flops", "A heading", columns, [("none", *"12345678")], ["A note."])
    result.show_tables([table])
    assert "| none " in capsys.readouterr().out
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    result.show_tables([table])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("\nnone ") == 2


def test_a_shard_and_a_run_without_a_finished_cell_print_nothing(
    finished: tuple[Path, tuple[Record, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = finished
    result.show(Outcome(existing=rows), folder, Shard(1, 2))
    result.show(Outcome(), folder)
    assert capsys.readouterr().out == ""
