"""CSV for pandas: all tables in one, or a file each; and the documentation of every column."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import page_runs
import pandas as pd
import pytest
from made_probes import coherence, landscape, noise
from made_records import make_profile, make_record

from dpbench import tasks
from dpbench.errors import ConfigError
from dpbench.report import request, runs
from dpbench.report.request import Request
from dpbench.report.tables import ablation, ablation_pairs, csv_files, efficiency, hard_subset, probes, two_runs
from dpbench.report.tables.table import Section

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "report-json.md"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return page_runs.run(tmp_path / "run")


def test_pandas_reads_all_tables_in_one_and_each_comes_back_as_it_was(run: Path) -> None:
    tables = request.sections(Request(), [run])
    everything = pd.read_csv(io.StringIO(csv_files.text(tables)), dtype={"Budget": str})
    assert list(dict.fromkeys(everything["Table name"])) == [
        "scores",
        "retention-differences",
        "minus-none",
        "efficiency",
    ]
    for table in tables:
        back = everything[everything["Table name"] == table.name].dropna(axis=1, how="all").reset_index(drop=True)
        assert set(back["Heading"]) == {table.heading}
        wanted = table.frame.dropna(axis=1, how="all")
        back = back[list(wanted.columns)].astype(wanted.dtypes.to_dict())
        pd.testing.assert_frame_equal(back, wanted, check_dtype=False)


def test_whole_numbers_stay_whole(run: Path) -> None:
    text = csv_files.text(request.sections(Request(), [run]))
    assert ",2000000000," in text
    assert "2000000000.0" not in text


def test_a_folder_gets_a_file_for_each_table(run: Path, tmp_path: Path) -> None:
    text, notes = request.write(Request(folders=(run,), form="csv", out=tmp_path / "tables"))
    assert (text, notes) == ("", [f"{tmp_path / 'tables'}: 4 files"])
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {
        "scores", "retention-differences", "minus-none", "efficiency",
    }  # fmt: skip
    scores = pd.read_csv(tmp_path / "tables" / "scores.csv")
    assert scores.columns[0] == "Heading"
    assert scores["POPE"].tolist() == pytest.approx([page_runs.f1(name) for name in scores["Method"]])


def test_a_file_gets_all_tables(run: Path, tmp_path: Path) -> None:
    request.write(Request(folders=(run,), form="csv", out=tmp_path / "all.csv"))
    assert (tmp_path / "all.csv").read_text() == request.report(Request(folders=(run,), form="csv")) + "\n"


def test_a_second_table_of_a_name_has_a_number_and_its_heading() -> None:
    profiles = [make_profile("grid", "16", [1.0]), make_profile("grid", "16", [1.0], configuration="compile")]
    found = pd.read_csv(io.StringIO(csv_files.text(efficiency.sections(profiles))))
    assert found["Table name"].tolist() == ["efficiency", "efficiency-2"]
    assert ["compile" in heading for heading in found["Heading"]] == [False, True]


def test_a_folder_that_cannot_be_made_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"--out: .*taken is a file, not a folder"):
        request.write(Request(folders=(run,), form="csv", out=tmp_path / "taken"))


def test_one_table_is_what_one_number_asks_for(run: Path) -> None:
    assert [table.name for table in request.sections(Request(table=1), [run])] == ["scores"]


def everything(run: Path) -> Iterator[Section]:
    yield from request.sections(Request(compare=True), [run])
    yield from two_runs.sections(run, run)
    yield from request._paper(Request(paper=True))
    params = [{"checkpoint": f"scorers/{name}-{seed}"} for name in ("diffprune", "fixed") for seed in (0, 1)]
    rows = [
        make_record("none", None, "pope", 90.0),
        *(make_record("diffprune", 16, "pope", 80.0, params=p) for p in params),
    ]
    (comparison,) = runs.comparisons([runs.Run(run, tuple(rows), ())])
    yield ablation.section(comparison)
    yield from ablation_pairs.sections(comparison)
    yield from efficiency.sections(
        [make_profile("none", "all", (8,), stages_flops={"ttft": 3, "decode": 1, "signals": 1})]
    )
    ways = ("diffprune", "gumbel-ste")
    gradients = [coherence(way, [[1.0, 0], [0, 1], [1, 1], [1, 2]], (1.0,) * 4) for way in ways]
    lines = [landscape(way, number, (0.0, 1.0, 3.0, 1.0, 0.0)) for way in ways for number in range(2)]
    yield from probes.sections([*gradients, *lines, noise("removal", (1.0, 0.5)), noise("mask", (1.0, 0.5))])


def test_every_column_is_documented_under_the_name_of_its_table(run: Path) -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    common, *parts = text.split("\n## ")
    titles = {task.title for task in tasks.ALL.values()}
    general = set(re.findall(r"`([^`]+)`", common)) | titles
    documented = {
        name: set(re.findall(r"`([^`]+)`", part)) for part in parts for name in part.split("\n")[0].split(", ")
    }
    found = list(everything(run))
    assert {table.name for table in found} | {"hard-subset", "minus-random"} == set(documented)
    for table in found:
        assert set(map(str, table.frame.columns)) - general - documented[table.name] == set(), table.name
        assert not {csv_files.TABLE, csv_files.HEADING} & set(table.frame.columns)
    hard = hard_subset._numbers(
        runs.row_key(make_record("grid", 16, "pope", 1.0).cell), {"pope": hard_subset.Hard(1.0, 2)}, {}
    )
    assert {name for row in hard for name in row} - general - documented["hard-subset"] == set()


def test_the_keys_of_a_table_are_documented() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8").split("\n## ")[0]
    assert {"name", "heading", "rows", "notes"} <= set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
