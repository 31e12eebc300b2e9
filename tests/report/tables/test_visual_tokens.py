"""Rows of one budget that read different numbers of visual tokens are marked, with both numbers and the reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_records import make_record

from dpbench.report import runs
from dpbench.report.runs import Run
from dpbench.report.tables import scores, visual_tokens
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section
from dpbench.storage.record import Record

NEXT = "llava-next"
WHY = "The official codes differ in the same way; --anyres global gives equal tokens."


def row(method: str, per_layer: tuple[float, ...], keep: int | None = 320, task: str = "gqa", **cell: Any) -> Record:
    made = make_record(method, keep, task, 50.0, **{"backbone": NEXT, **cell})
    return replace(made, visual_tokens_per_layer=per_layer)


def table(*rows: Record) -> Section:
    (one,) = runs.comparisons([Run(Path("a run"), rows, ())])
    return scores.section(one)


def marks(section: Section) -> dict[str, str]:
    at = section.columns.index("Tokens")
    return {row.cells[0].text: "".join(row.cells[at].refs) for row in section.rows if row.kind == "data"}


def test_per_view_methods_read_192_of_three_views_where_global_ones_read_320() -> None:
    """The spec's row 12: 320 is for five views, 64 each; a cut inside the LLM has 320 as the mean of its layers."""
    section = table(
        row("none", (1728.0,) * 4, None),
        row("visionzip", (192.0,) * 4),
        row("prunesid", (192.0,) * 4),
        row("holov", (320.0,) * 4),
        row("divprune", (320.0,) * 4),
        row("fastv", (1000.0, 93.0, 93.0, 94.0)),
    )
    assert marks(section) == {"none": "", "visionzip": "a", "prunesid": "a", "holov": "", "divprune": "", "fastv": ""}
    assert "a: reads 192 visual tokens where most rows of this budget read 320" in section.notes
    assert [note.endswith(WHY) for note in section.notes].count(True) == 1
    assert "192.0<sup>a</sup>" in render(section, "markdown")


def test_equal_tokens_need_no_mark() -> None:
    section = table(row("visionzip", (192.0,) * 4), row("holov", (192.0,) * 4))
    assert set(marks(section).values()) == {""}
    assert not [note for note in section.notes if WHY in note]


@pytest.mark.parametrize(("read", "is_marked"), [(313.7, False), (326.3, False), (313.5, True), (327.0, True)])
def test_two_percent_are_equal(read: float, is_marked: bool) -> None:
    section = table(row("holov", (320.0,), 400), row("divprune", (320.0,), 400), row("visionzip", (read,), 400))
    assert bool(marks(section)["visionzip"]) == is_marked


def test_a_cut_inside_the_llm_may_miss_a_small_budget_by_a_token() -> None:
    rows = [row(method, (read,), 16) for method, read in (("holov", 16.0), ("grid", 16.0), ("fastv", 15.1))]
    assert marks(table(*rows))["fastv"] == ""


def test_a_row_that_reads_more_than_most_is_marked_too() -> None:
    rows = [row(method, (192.0,)) for method in ("visionzip", "hired")]
    section = table(*rows, row("holov", (320.0,)))
    assert marks(section) == {"visionzip": "", "hired": "", "holov": "a"}
    assert "a: reads 320 visual tokens where most rows of this budget read 192" in section.notes


def test_each_budget_has_its_own_usual_number() -> None:
    section = table(row("holov", (320.0,)), row("holov", (160.0,), 160), row("grid", (96.0,), 160))
    assert marks(section)["grid"] == "a"
    assert "a: reads 96 visual tokens where most rows of this budget read 160" in section.notes


def test_only_benchmarks_that_all_rows_have_are_compared() -> None:
    """Images of another benchmark are of other sizes: a row without it reads another mean, and is not marked."""
    section = table(
        row("holov", (320.0,)), row("holov", (192.0,), task="pope"), row("grid", (320.0,)), row("pool", (320.0,))
    )
    assert set(marks(section).values()) == {""}


@pytest.mark.parametrize("cell", [{"backbone": "llava-1.5"}, {"anyres": "global"}])
def test_the_reason_is_anyres_only_where_there_are_views(cell: dict[str, str]) -> None:
    section = table(
        row("holov", (48.0,), 48, **cell), row("grid", (48.0,), 48, **cell), row("pool", (42.0,), 48, **cell)
    )
    assert marks(section)["pool"] == "a"
    assert not [note for note in section.notes if WHY in note]


def test_without_recorded_tokens_nothing_is_marked() -> None:
    assert marks(table(row("holov", ()), row("grid", (320.0,)))) == {"holov": "", "grid": ""}
    assert visual_tokens.tokens([row("holov", ())]) is None
