"""The paper's numbers as data: complete, each with its place, and its averages recomputed."""

from dataclasses import replace
from typing import Any

import pytest

from dpbench import registry, tasks
from dpbench.manifest.schema import Protocol, resolve
from dpbench.report.tables import published
from dpbench.report.tables.published import PaperTable

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
    assert list(rows[0]["scores"]) == list(published.load(table).columns)


@pytest.mark.parametrize("table", published.COMPARISONS)
def test_a_column_is_a_task_of_ours_with_metric_split_and_source(table: int) -> None:
    for column in published.load(table).columns.values():
        task = tasks.find(column.task)
        assert column.split == task.split
        files = "".join(path.read_text(encoding="utf-8") for path in tasks.yaml_paths(column.task))
        assert f"- metric: {column.metric}\n" in files
        assert column.description
        assert column.source


def test_the_published_quantities() -> None:
    first, second = published.load(1), published.load(2)
    assert (first.columns["pope"].metric, first.unpruned["pope"]) == ("pope_f1_score", 85.9)
    assert (first.columns["seedbench_all"].title, first.unpruned["seedbench_all"]) == ("SEED", 60.5)
    assert (first.columns["vqav2_testdev"].title, first.columns["vqav2_testdev"].split) == ("VQAv2", "testdev")
    assert first.columns["mme"].metric == "mme_total_score"
    assert (first.protocol["ocr"].value, first.unpruned["textvqa"]) == (True, 58.2)
    assert (second.protocol["ocr"].value, second.unpruned["textvqa"]) == (False, 64.9)
    assert {table.protocol["prompt"].value for table in (first, second)} == {"vicuna_v1"}
    assert published.load(3).protocol["min_pixels"].text == "not stated"


@pytest.mark.parametrize("table", published.COMPARISONS)
def test_the_published_protocol_is_what_the_table_states(table: int) -> None:
    stated = published.load(table)
    ours = resolve(Protocol(preset="published"), stated.backbone).model_dump()
    for name, setting in stated.protocol.items():
        if name in ours and setting.value is not None:
            assert ours[name] == setting.value, name
    for setting in stated.protocol.values():
        assert set(setting.columns) <= set(stated.columns)


def test_rows_that_cannot_be_met_have_a_note() -> None:
    table = published.load(1)
    notes = {row["row"]: published.note_on(table, row) for row in table.rows}
    assert "SparseVLMs issue 12" in str(notes["FastV"])
    assert notes["PDrop"] == notes["PyramidDrop"] is not None
    assert notes["HoloV"] is None
    assert 8 * 576 / 32 == 144 > 128  # L8-L24 reads all before layer 8: more than a mean of 128 or 64 can be
    assert 8 * 2880 / 32 == 720 > 320


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


def test_the_tables_are_where_the_package_looks() -> None:
    assert {path.name for path in published.folder().iterdir()} >= {
        f"table{number}.yaml" for number in published.TABLES
    }
