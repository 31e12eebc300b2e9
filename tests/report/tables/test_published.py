"""The paper's numbers as data: complete, each with its place, and its averages recomputed."""

from dataclasses import replace
from typing import Any

import pytest

from dpbench import registry, tasks
from dpbench.report.tables import published
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section

ROWS = {1: 22, 2: 7, 3: 10, 4: 5, 5: 4}
NUMBERS = {1: 22 * 11 - 24, 2: 7 * 9, 3: 10 * 6, 4: 5 * 6, 5: 4 * 3}
"""Printed numbers a table; Table 1 prints 24 dashes among its scores."""


def numbers(row: dict[str, Any]) -> list[float]:
    values = row.get("scores") or row["values"]
    found = list(values.values()) if isinstance(values, dict) else list(values)
    extra = [row["average"]] if "average" in row else [row["budget"]] if isinstance(values, dict) else []
    return [value for value in [*found, *extra] if value is not None]


@pytest.mark.parametrize("table", published.TABLES)
def test_every_number_is_there_with_its_table_row_column_and_source(table: int) -> None:
    found = published.load(table)
    assert found.number == table
    assert f"Table {table}" in found.source
    assert len(found.rows) == ROWS[table]
    assert sum(len(numbers(dict(row))) for row in found.rows) == NUMBERS[table]
    assert all(row["row"] for row in found.rows)


@pytest.mark.parametrize("table", published.COMPARISONS)
def test_every_row_has_the_same_columns_which_are_benchmarks(table: int) -> None:
    rows = published.load(table).rows
    assert len({tuple(row["scores"]) for row in rows}) == 1
    assert set(rows[0]["scores"]) <= set(tasks.TASKS)


def test_thirty_six_of_thirty_six_averages_agree() -> None:
    found = published.averages()
    assert len(found) == 36
    assert all(each.agrees for each in found)
    assert published.verdict() == "36 of 36 averages agree within 0.1 with the mean of their row's scores."


def test_an_average_that_does_not_agree_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(table: int) -> PaperTable:
        found = real(table)
        rows = [{**row, "average": 97.0} if row["row"] == "DART" else row for row in found.rows]
        return replace(found, data={**found.data, "rows": rows})

    real = published.load
    monkeypatch.setattr(published, "load", wrong)
    assert published.verdict().startswith("35 of 36")
    assert "Table 2, DART, Retain 320 tokens (88.9 % pruning): 97.0 printed, 95.57 from its row" in published.verdict()


def test_an_average_by_hand() -> None:
    diffprune = next(a for a in published.averages() if a.row == "DiffPrune" and a.table == 3 and "88.9" in a.group)
    by_hand = (76.7 / 82.8 + 2113 / 2304 + 79.8 / 86.1 + 82.9 / 84.7 + 76.7 / 84.8) / 5
    assert diffprune.recomputed == pytest.approx(100 * by_hand)
    assert diffprune.printed == 93.1


def test_pruning_rates_follow_from_budgets() -> None:
    for table in map(published.load, (1, 2)):
        for row in table.rows[1:]:
            assert row["prune_rate"] == pytest.approx(1 - row["budget"] / table.data["num_visual"], abs=5e-4)


def test_methods_are_names_of_the_registry_or_cited_with_a_reason() -> None:
    for table in map(published.load, published.COMPARISONS):
        for row in table.rows:
            reason = published.why_not_run(table, row)
            assert reason or row["method"] in registry.methods()
    voco = next(row for row in published.load(1).rows if row["row"] == "VoCo-LLaMA")
    assert published.why_not_run(published.load(1), voco) == (
        "it trains the language model itself; dpbench compares methods on a frozen backbone"
    )


def test_a_method_that_is_not_installed_is_cited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "methods", lambda: ["none", "diffprune"])
    table = published.load(2)
    dart = next(row for row in table.rows if row["row"] == "DART")
    assert published.why_not_run(table, dart) == "not among the methods that are installed here"


def section(table: int) -> Section:
    (found,) = published.sections([table])
    return found


def test_cited_rows_are_grey_where_there_are_colours() -> None:
    row = next(row for row in section(1).rows if row.cells[0].text.startswith("VoCo"))
    assert row.kind == "cited"
    assert "\\textcolor{gray}{VoCo-LLaMA (CVPR'25)}\\textsuperscript{a}" in render(section(1), "latex")
    assert "*VoCo-LLaMA (CVPR'25)*<sup>a</sup>" in render(section(1), "markdown")


def test_the_paper_bold_row_is_ours_too() -> None:
    marks = {
        (row.cells[0].text, row.cells[-2].text): row.cells[-2].mark for row in section(1).rows if row.kind != "group"
    }
    assert marks["DiffPrune (Ours)", "96.5%"] == marks["PRUNESID (ICLR'26)", "98.5%"] == "best"


def test_a_dash_stays_a_dash() -> None:
    row = next(row for row in section(1).rows if row.cells[0].text.startswith("HoloV"))
    assert row.cells[section(1).columns.index("SEED")].text == "-"


def test_table_five_does_not_follow_from_table_one_and_the_report_says_so() -> None:
    assert section(5).notes[-1] == (
        "Full DiffPrune prints 95.5 / 97.3 / 98.3; its rows in Table 1 give 94.5 / 96.2 / 97.1 "
        "over the same benchmarks."
    )


def test_table_four_speed_ups_are_computed() -> None:
    assert [row.cells[-1].text for row in section(4).rows] == ["1.00x", "1.29x", "1.41x", "1.93x", "2.03x"]


def test_the_tables_are_where_the_package_looks() -> None:
    assert {path.name for path in published.folder().iterdir()} >= {
        f"table{number}.yaml" for number in published.TABLES
    }
