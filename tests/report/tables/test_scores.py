"""The comparison table: what shares one, what is marked, what is missing and why."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_record, write_run

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.errors import ConfigError, RecordError
from dpbench.report import retention, runs
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey, Run
from dpbench.report.tables import scores as comparison
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section
from dpbench.storage.record import Record

RECORDS = [
    make_record("none", None, "pope", 80.0),
    make_record("none", None, "gqa", 50.0),
    make_record("random", 16, "pope", 60.0),
    make_record("random", 16, "gqa", 40.0),
    make_record("grid", 32, "pope", 80.0),
]


def compared(records: list[Record], **run: object) -> list[Comparison]:
    return runs.comparisons([Run(Path("a run"), tuple(records), (), **run)])  # type: ignore[arg-type]


def table(records: list[Record], **run: object) -> Section:
    (one,) = compared(records, **run)
    return comparison.section(one)


def cells(section: Section, method: str) -> dict[str, str]:
    row = next(row for row in section.rows if row.cells[0].text == method and row.kind == "data")
    return {name: cell.text for name, cell in zip(section.columns, row.cells, strict=True)}


def marks(section: Section, column: str) -> dict[str, str]:
    at = section.columns.index(column)
    return {row.cells[0].text: row.cells[at].mark for row in section.rows if row.kind == "data"}


def test_retention_is_the_mean_over_benchmarks_of_score_by_unpruned_score() -> None:
    rows = table(RECORDS).frame.set_index("Method")[RETENTION]
    assert rows["none"] == 100
    assert rows["random"] == pytest.approx((60 / 80 + 40 / 50) / 2 * 100)
    assert rows["grid"] == 100  # over the one benchmark it has


def test_a_benchmark_that_the_unpruned_model_cannot_do_is_left_out_of_retention_and_named() -> None:
    rows = [
        ("none", None, "pope", 80.0),
        ("none", None, "gqa", 0.0),
        ("grid", 8, "pope", 40.0),
        ("grid", 8, "gqa", 9.0),
    ]
    section = table([make_record(*row) for row in rows])
    assert section.frame[RETENTION].tolist() == [100, 50]
    assert section.frame[f"{RETENTION} benchmarks"].tolist() == [1, 1]
    assert "Retention: mean of 1 of 2 benchmarks of score / score of none, in percent." in section.notes
    assert (
        "Shown but left out of the average, for all rows: GQA (unpruned 0.0 ± 0.0 is not clearly above chance, 0.0)."
    ) in section.notes


def test_a_retention_of_nothing_is_nothing() -> None:
    assert retention.retention({"pope": 50.0}, {}) is None
    assert retention.retention({"pope": 50.0}, {"pope": 0.0}) is None


def test_a_benchmark_that_was_not_run_is_a_dash_with_its_reason() -> None:
    section = table(RECORDS)
    assert (cells(section, "grid")["GQA"], cells(section, "grid")["POPE"]) == ("-", "80.0")
    assert "a: not part of this run" in section.notes
    asked = frozenset({("grid", "gqa"), ("grid", "pope")})
    assert "a: not finished in this run: start it again to resume it" in table(RECORDS, planned=asked).notes


def test_a_method_without_any_finished_cell_is_named() -> None:
    notes = table(RECORDS, planned=frozenset({("holov", "pope"), ("grid", "pope")})).notes
    assert "No cell is finished of: holov." in notes


def test_a_benchmark_that_is_only_asked_for_has_a_column_of_dashes() -> None:
    section = table(RECORDS[:1], planned=frozenset({("none", "pope"), ("none", "mme")}))
    assert cells(section, "none")["MME"] == "-"


def test_without_the_unpruned_model_there_is_no_retention_and_a_note() -> None:
    section = table(RECORDS[2:])
    assert section.frame[RETENTION].isna().all()
    assert any("no cell of method none" in note for note in section.notes)


@pytest.mark.parametrize("changed", [{"limit": None}, {"dtype": "float16"}, {"ocr": True}, {"attention": "eager"}])
def test_protocols_never_share_a_table(changed: dict[str, object]) -> None:
    assert len(compared([*RECORDS, make_record("none", None, "pope", 1.0, **changed)])) == 2


def test_other_weights_never_share_a_table() -> None:
    assert len(compared([*RECORDS, make_record("none", None, "pope", 1.0, fingerprints={"weights": "other"})])) == 2


@pytest.mark.parametrize(("kind", "what"), [("data", "other data"), ("task", "other task rules")])
def test_other_data_in_one_column_is_refused(kind: str, what: str) -> None:
    first, second = (
        make_record(method, keep, "pope", 50.0, fingerprints={kind: value})
        for method, keep, value in (("none", None, "1"), ("grid", 16, "2"))
    )
    with pytest.raises(RecordError, match=f"a run: pope of grid .* has {what} than none"):
        compared([first, second])


def test_runs_of_the_same_benchmarks_share_a_table_and_others_do_not() -> None:
    first = Run(Path("a"), (RECORDS[0],), ())
    second = Run(Path("b"), (make_record("grid", 16, "pope", 70.0),), ())
    third = Run(Path("c"), (make_record("grid", 16, "gqa", 70.0),), ())
    found = runs.comparisons([first, second, third])
    assert sorted(len(each.rows) for each in found) == [1, 2]


def test_seeds_are_averaged_and_said() -> None:
    section = table([*RECORDS, make_record("random", 16, "pope", 70.0, seed=1)])
    assert section.frame.set_index("Method").loc["random", "POPE"] == 65
    assert any(note.startswith("Mean over 2 seeds") for note in section.notes)


def test_columns_are_in_the_papers_order() -> None:
    every = [make_record("none", None, name, 50.0) for name in reversed(tasks.TASKS)]
    assert list(table(every).columns)[3:-1] == [task.title for task in tasks.TASKS.values()]


def test_budgets_come_from_the_largest_and_the_unpruned_model_first() -> None:
    many = [make_record("grid", keep, "pope", 50.0) for keep in (16, 48, 32)]
    groups = [row.cells[0].text for row in table([*many, RECORDS[0]]).rows if row.kind == "group"]
    assert groups == [
        "Unpruned, 144 visual tokens (100 %)",
        "Keep 48 visual tokens (66.7 % pruned)",
        "Keep 32 visual tokens (77.8 % pruned)",
        "Keep 16 visual tokens (88.9 % pruned)",
    ]


def test_pruning_rates_have_groups_too() -> None:
    rates = [replace(make_record("grid", None, "pope", 50.0, prune_rate=rate)) for rate in (0.889, 0.667)]
    groups = [row.cells[0].text for row in table(rates).rows if row.kind == "group"]
    assert groups == ["Pruning rate 66.7 %", "Pruning rate 88.9 %"]


def test_best_and_second_are_marked_within_a_budget_and_references_take_no_part() -> None:
    scores = {"random": 50.0, "grid": 70.0, "pool": 60.0, "holov": 40.0, "fastv": 30.0}
    rows = [make_record(name, 16, "pope", score) for name, score in scores.items()]
    found = marks(table([RECORDS[0], *rows, make_record("diffprune", 32, "pope", 1.0)]), "POPE")
    assert {name: mark for name, mark in found.items() if mark} == {"pool": "best", "holov": "second"}
    assert found.keys() == {"none", *scores, "diffprune"}


def test_a_retention_over_fewer_benchmarks_is_not_ranked() -> None:
    full = [make_record(method, 16, name, score) for method, score in (("pool", 40.0), ("fastv", 30.0))
            for name in ("pope", "gqa")]  # fmt: skip
    section = table([*RECORDS[:2], *full, make_record("holov", 16, "pope", 80.0)])
    assert marks(section, RETENTION) == {"none": "", "pool": "best", "fastv": "", "holov": ""}
    assert marks(section, "POPE") == {"none": "", "pool": "best", "fastv": "", "holov": ""}
    assert "b: mean of 1 of the 2 benchmarks that count; not comparable with other rows, not ranked" in section.notes
    assert section.frame.set_index("Method").loc["holov", f"{RETENTION} benchmarks"] == 1


def test_a_row_that_overspends_has_a_group_of_its_own_and_no_mark() -> None:
    over = replace(make_record("holov", 16, "pope", 79.0), visual_tokens_per_layer=(17.0, 17.0))
    section = table(
        [RECORDS[0], over, *(make_record(name, 16, "pope", 50.0 + len(name)) for name in ("tome", "pool2"))]
    )
    assert [row.cells[0].text for row in section.rows] == [
        "Unpruned, 144 visual tokens (100 %)", "none",
        "Keep 16 visual tokens (88.9 % pruned)", "pool2", "tome",
        "Read more than their budget: Keep 16 visual tokens (88.9 % pruned)", "holov",
    ]  # fmt: skip
    assert marks(section, "POPE") == {"none": "", "pool2": "best", "tome": "", "holov": ""}
    assert "a: reads 17.0 visual tokens of a budget of 16; takes no part in the ranking" in section.notes
    assert section.rows[-1].cells[2].refs == ("a",)
    assert section.frame.set_index("Method")["Over budget"].to_dict() == {
        "none": False, "pool2": False, "tome": False, "holov": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("per_layer", "where"),
    [
        ((64, 64, 64), "Pre"),
        ((576, 576, 40, 40), "L2"),
        ((144, 57, 57, 23, 23, 9), "L1-L5"),
        ((16,), "Pre"),
    ],
)
def test_the_location_follows_from_what_the_layers_read(per_layer: tuple[float, ...], where: str) -> None:
    assert comparison.at_layers(per_layer) == where
    pruned = replace(make_record("fastv", 16, "pope", 50.0), visual_tokens_per_layer=per_layer)
    assert cells(table([pruned]), "fastv")["Loc."] == where


def test_a_row_like_random_is_marked_and_explained() -> None:
    (one,) = compared(RECORDS)
    key = RowKey(BudgetRequest(keep=16), "random", "{}")
    section = comparison.section(one, frozenset({key}))
    assert "77.5 ~" in render(section, "markdown")
    assert any(note.startswith("~: its retention cannot be told from random's") for note in section.notes)


def test_failures_and_versions_are_said() -> None:
    failed = replace(make_record("grid", 16, "gqa", 50.0, fingerprints={"torch": "2"}), num_failed=3)
    other = make_record("pool", 16, "gqa", 50.0, fingerprints={"torch": "1"})
    notes = table([failed, other]).notes
    assert "3 samples failed and count as wrong; the journals say why." in notes
    assert "Answered with different versions of torch: 1, 2." in notes


def test_folders_are_found_under_results(tmp_path: Path) -> None:
    write_run(tmp_path / "a", RECORDS[:1])
    assert runs.runs_under(tmp_path) == [tmp_path / "a"]
    with pytest.raises(ConfigError, match="no records under"):
        runs.runs_under(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": {"task": "pope"}}, "has no 'anyres'"),
        ({"cell": {**RECORDS[0].cell, "task": "poqe"}}, "task 'poqe', which this dpbench does not know"),
        ({"cell": {**RECORDS[0].cell, "subset": "hard"}}, "scored on the hard subset alone.*report --subset hard"),
        ({"cell": {**RECORDS[0].cell, "keep": 0}}, "--keep: must be at least 1, got 0; move the file away"),
        ({"cell": {**RECORDS[0].cell, "keep": 4, "prune_rate": 0.5}}, "both set the budget"),
        ({"score": 120.0}, "score 120.0, scores are 0 to 100"),
        ({"score": float("nan")}, "score nan"),
    ],
)
def test_a_corrupt_record_is_one_sentence(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=message):
        runs.load(write_run(tmp_path, [replace(RECORDS[0], **change)]))  # type: ignore[arg-type]


def test_a_cell_of_an_older_version_without_a_subset_is_the_same_cell(tmp_path: Path) -> None:
    old = replace(RECORDS[0], cell={**RECORDS[0].cell, "subset": None}, finished="2026-01-01T00:00:00+00:00")
    loaded = runs.load(write_run(tmp_path, [old, RECORDS[0]]))
    assert loaded.records == (RECORDS[0],)


def test_a_damaged_manifest_is_one_sentence(tmp_path: Path) -> None:
    write_run(tmp_path, RECORDS)
    for text in ("methods: [", "methods: 3", "- a"):
        (tmp_path / "manifest.yaml").write_text(text)
        with pytest.raises(RecordError, match="is not a manifest that dpbench wrote"):
            runs.load(tmp_path)


def test_rows_that_were_asked_other_samples_are_told() -> None:
    """A record of before too long samples were left out has 0 of them."""
    rows = [
        replace(make_record(method, keep, "seedbench_all", 50.0), num_samples=30 - left_out, num_too_long=left_out)
        for method, keep, left_out in (("none", None, 12), ("grid", 16, 12), ("pool", 16, 0))
    ]
    same = [row for row in rows if row.num_too_long]
    assert (
        "12 of 30 samples of SEED-all are too long for the unpruned toy-llava and are left out of every row."
    ) in table(same).notes
    assert (
        "The rows of SEED-all were not asked the same samples: from 0 to 12 of 30 are left out as too long for the "
        "unpruned toy-llava; run all rows again."
    ) in table(rows).notes


def test_a_column_of_an_earlier_metric_says_so() -> None:
    metrics = {"pope_accuracy": 0.8, "pope_f1_score": 0.7}
    old, new = (replace(make_record("none", None, "pope", score), metrics=metrics) for score in (80.0, 70.0))
    note = (
        "POPE: scored by pope_accuracy, as earlier versions did; the score is F1, mean of 3 splits now: run it again."
    )
    assert note in table([old]).notes
    assert not [each for each in table([new]).notes if "scored by" in each]
