"""The short form: a row per method and budget, the result in sentences, and the commands that show more."""

import io
from dataclasses import replace
from pathlib import Path

import page_runs
import pytest
from made_records import make_profile, make_record, write_run
from rich.cells import cell_len
from rich.console import Console

from dpbench.report import request
from dpbench.report.request import Request
from dpbench.report.terminal import screen, short
from dpbench.storage import record
from dpbench.storage.record import Record

TASKS = ("gqa", "pope", "textvqa", "mme")
SCORES = {"random": (60.0, 50.0, 40.0, 30.0), "holov": (62.0, 70.0, 80.0, 31.0), "fastv": (61.0, 40.0, 10.0, 32.0)}


def make_big(method: str, keep: int | None, task: str, score: float, **cell: object) -> Record:
    return replace(make_record(method, keep, task, score, **cell), num_samples=400)


def records(*methods: str, keep: int = 16) -> list[Record]:
    return [
        make_big(name, keep, task, score) for name in methods for task, score in zip(TASKS, SCORES[name], strict=True)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    unpruned = [make_big("none", None, task, 80.0) for task in TASKS]
    return write_run(tmp_path / "run", [*unpruned, *records("random", "holov", "fastv"), *records("holov", keep=48)])


def printed(folders: list[Path], width: int = 80) -> str:
    stream = io.StringIO()
    screen.print_short(folders, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def rows_of(text: str) -> list[list[str]]:
    names = ("none", *SCORES, "dart", "grid")
    return [line.split() for line in text.split("\n") if line.startswith(tuple(f"{name} " for name in names))]


def test_rows_come_by_budget_and_by_retention_with_the_scores_that_differ_most(run: Path) -> None:
    text = printed([run])
    assert text.split("\n")[2].split() == ["Method", "Tokens", "Retention", "TextVQA", "POPE", "GQA"]
    assert rows_of(text) == [
        ["none", "144.0", "100.0", "80.0", "80.0", "80.0"],
        ["holov", "48.0", "75.9", "80.0", "70.0", "62.0"],
        ["holov", "16.0", "75.9", "80.0", "70.0", "62.0"],
        ["random", "16.0", "56.2", "40.0", "50.0", "60.0"],
        ["fastv", "16.0", "44.7", "10.0", "40.0", "61.0"],
    ]
    words = " ".join(text.split())
    assert "Scores, 0-100: TextVQA, POPE and GQA, on which methods differ most, of 4 benchmarks." in words
    assert "holov retains most: 75.9 %" in words


def test_it_ends_with_the_commands_that_show_more(run: Path) -> None:
    first, second = printed([run], 400).rstrip("\n").split("\n")[-2:]
    assert first.strip() == f"dpbench report {run} --full"
    assert second.strip() == f"dpbench report {run} --format html --out report.html"


def test_intervals_and_the_mark_against_random(tmp_path: Path) -> None:
    """Twelve questions a side: holov is right where random is wrong."""
    folder = page_runs.run(tmp_path)
    (block,) = short.blocks([folder])
    assert "none" in [row.cells[0].text for row in block.section.rows]
    assert short._verdict(3.0, 0.04) == ("better", "good")
    assert short._verdict(-3.0, 0.04) == ("worse", "bad")
    assert short._verdict(3.0, 0.05) == ("alike", "quiet")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_no_row_is_wrapped(run: Path, width: int) -> None:
    long = {"checkpoint": "scorers/" + "a-long-name-" * 6, "temperature": 0.5}
    for task in TASKS:
        record.append(run / "records.jsonl", make_big("diffprune", 16, task, 70.0, params=long))
    lines = printed([run], width).split("\n")
    assert max(map(cell_len, lines)) <= width
    assert len([line for line in lines if line.startswith("diff")]) == 1


def test_a_label_is_brief_where_it_is_too_long_but_never_the_same_as_another(tmp_path: Path) -> None:
    rows = [make_big("cdpruner", 16, "pope", 70.0, params={name: "words"}) for name in ("relevance", "reference")]
    run = write_run(tmp_path / "run", rows)
    key_a, key_b = (short.runs.row_key(row.cell) for row in rows)
    assert short.brief_labels([key_a]) == {key_a: "cdpruner (words)"}
    assert short.brief_labels([key_a, key_b]) == {key_a: key_a.label, key_b: key_b.label}
    assert "cdpruner (relevance=words)" in printed([run])


def test_a_run_of_one_method_shows_all_scores_that_fit_and_says_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records("holov"))
    text = printed([run])
    assert rows_of(text) == [["holov", "16.0", "62.0", "31.0", "70.0", "80.0"]]
    assert "No retention: this run has no cell of method none." in text


def test_cells_that_failed_are_told_and_their_rows_have_no_average(run: Path) -> None:
    (run / "manifest.yaml").write_text(f"methods: [none, random, holov, fastv, dart]\ntasks: [{', '.join(TASKS)}]\n")
    kept = [row for row in record.read(run / "records.jsonl", Record) if row.cell_id != "fastv-16-gqa"]
    record.rewrite(run / "records.jsonl", [replace(kept[0], num_failed=2), *kept[1:]])
    text = printed([run])
    assert "No cell is finished of: dart." in text
    assert "2 samples failed and count as wrong" in text
    assert "1 row has no score on some benchmarks, and no average: see --full." in text
    assert rows_of(text)[-1] == ["fastv", "16.0", "-", "10.0", "40.0", "-"]


def test_many_benchmarks_that_do_not_count_are_one_sentence(tmp_path: Path) -> None:
    rows = [make_record("none", None, task, 90.0) for task in ("gqa", "pope", "textvqa", "vizwiz")]
    run = write_run(tmp_path / "run", [replace(row, num_samples=3) for row in rows])
    text = " ".join(printed([run]).split())
    why = "GQA for example (3 questions, fewer than 20): see --full."
    assert f"No retention: none of the 4 benchmarks counts for one, {why}" in text


def test_a_profile_alone_gives_times_and_says_how_many_scatter(tmp_path: Path) -> None:
    flags = ("scatters: 90th over 10th percentile is 1.44",)
    (tmp_path / "run").mkdir()
    for row in (
        make_profile("none", "all", (8.0, 8.0)),
        *(make_profile(name, "16", (4.0, 4.0), flags=flags) for name in ("grid", "dart")),
    ):
        record.append(tmp_path / "run" / "profile.jsonl", row)
    text = printed([tmp_path / "run"])
    assert rows_of(text)[0] == ["none", "144.0", "2.00", "8.00", "[8.00-8.00]", "1.00x"]
    assert rows_of(text)[1] == ["dart", "16.0", "2.00", "4.00", "[4.00-4.00]", "2.00x"]
    assert "2 timed rows scatter by more than 1.1x: see --full." in text


def test_two_runs_that_cannot_share_a_table_have_one_each(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [make_big("dart", 16, "pope", 50.0, limit=400)])
    text = printed([run, other])
    assert text.count("Method ") == 2
    assert f"dpbench report {run} {other} --full".split()[-1] in text


def test_a_terminal_gets_the_short_form_and_everything_on_request(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for full, table in ((False, None), (True, None), (False, 1)):
        assert request.write(Request(folders=(run,), full=full, table=table)) == ("", [])
        shown[full, table] = capsys.readouterr().out
    assert "--full" in shown[False, None]
    assert "Loc." in shown[True, None]
    assert "Loc." in shown[False, 1]
    assert all("|" not in text for text in shown.values())


@pytest.mark.parametrize("change", [{"form": "markdown"}, {"form": "csv"}, {"form": "json"}, {"form": "latex"}])
def test_a_format_is_text_in_a_terminal_too(run: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request.report(Request(folders=(run,), form=change["form"]))
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    assert request.write(Request(folders=(run,), form=change["form"])) == (wanted, [])


def test_a_pipe_gets_markdown_of_everything(run: Path) -> None:
    assert request.write(Request(folders=(run,))) == (request.report(Request(folders=(run,), form="markdown")), [])


def test_colour_can_be_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    screen.print_short([run], Console(file=stream, width=80, force_terminal=True, highlight=False))
    assert "\x1b[32m" not in stream.getvalue()
    assert "\x1b[1m" in stream.getvalue()
