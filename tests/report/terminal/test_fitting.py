"""A table fits the width: it is split by columns, a row stays on its line, and nothing in it steers the terminal."""

import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_records import make_profile, make_record
from rich.cells import cell_len
from rich.console import Console

from dpbench.report import request, runs
from dpbench.report.request import Request
from dpbench.report.tables import efficiency
from dpbench.report.tables.table import Cell, Row, Section, group_row
from dpbench.report.terminal import fitting, screen

WIDTHS = (80, 120, 200)
RESULTS = Path(__file__).parents[3] / "results"


def make_section(label: str = "holov", num_columns: int = 12) -> Section:
    columns = ("Method", *(f"Column {at}" for at in range(num_columns)))
    rows = [Row((Cell(f"{label}-{at}"), *(Cell(f"{at}.{place}") for place in range(num_columns)))) for at in range(3)]
    return Section("A heading", pd.DataFrame(), ("A note.",), columns, (group_row("Keep 16", len(columns)), *rows))


def printed(sections: list[Section], width: int) -> list[str]:
    stream = io.StringIO()
    screen.print_full(sections, Console(file=stream, width=width, highlight=False, force_terminal=True, no_color=True))
    return [line.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "").replace("\x1b[4m", "")
            .replace("\x1b[3m", "") for line in stream.getvalue().split("\n")]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_is_one_line_of_each_part_and_every_number_is_there_once(width: int) -> None:
    lines = printed([make_section()], width)
    assert max(map(cell_len, lines)) <= width
    for at in range(3):
        found = [line.split() for line in lines if line.startswith(f"holov-{at}")]
        assert [word for words in found for word in words[1:]] == [f"{at}.{place}" for place in range(12)]
    assert len([line for line in lines if line.startswith("Keep 16")]) == {80: 2, 120: 2, 200: 1}[width]


def test_every_part_has_the_columns_that_say_what_a_row_is() -> None:
    rows = tuple(
        Row((Cell(name), Cell(whose), *(Cell(f"{whose}.{at}") for at in range(12))))
        for name, whose in (("holov", "paper"), ("", "ours"))
    )
    columns = ("Method", "Whose", *(f"Column {at}" for at in range(12)))
    section = Section("A heading", pd.DataFrame(), (), columns, rows, num_labels=2)
    lines = [line.split() for line in printed([section], 80)]
    assert [line[:3] for line in lines if "ours" in line] == [
        ["ours", "ours.0", "ours.1"],
        ["ours", "ours.6", "ours.7"],
    ]
    assert [line[:2] for line in lines if "holov" in line] == [["holov", "paper"]] * 2


@pytest.mark.parametrize("width", [30, 80])
def test_a_label_that_is_too_long_loses_its_middle_and_rows_stay_apart(width: int) -> None:
    lines = printed([make_section("diffprune (checkpoint=" + "long-" * 20)], width)
    labels = {line.split("  ")[0] for line in lines if line.startswith("diff")}
    assert max(map(cell_len, lines)) <= width
    assert len(labels) == 3
    assert all(fitting.CUT in label for label in labels)


def test_a_column_wider_than_the_terminal_is_cut_and_not_wrapped() -> None:
    section = Section("A heading", pd.DataFrame(), (), ("Method", "Why"), (Row((Cell("dart"), Cell("words " * 40))),))
    lines = [line for line in printed([section], 60) if "dart" in line]
    assert len(lines) == 1
    assert cell_len(lines[0]) <= 60


def test_escape_sequences_and_markup_in_a_record_are_text() -> None:
    section = Section(
        "\x1b[2J[red]x", pd.DataFrame(), ("\x07n",), ("Method", "A"), (Row((Cell("[bold]\x1b[31m"), Cell("1"))),)
    )
    text = "\n".join(printed([section], 80))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]?[31m" in text
    assert "?[2J[red]x" in text


def test_digits_stay_in_line_beside_signs() -> None:
    rows = (Row((Cell("a"), Cell("45.0", refs=("a",)))), Row((Cell("b"), Cell("48.0"))))
    lines = printed([Section("A heading", pd.DataFrame(), (), ("Method", "Tokens"), rows)], 80)
    (first,) = [line for line in lines if line.startswith("a ")]
    (second,) = [line for line in lines if line.startswith("b ")]
    assert first.index("45.0") == second.index("48.0")
    assert first.endswith("45.0 a")


def test_a_note_is_printed_once_and_a_footnote_with_its_own_table() -> None:
    tables = [Section(f"Heading {at}", pd.DataFrame(), ("Paired.", "a: once"), ("Method",), ()) for at in range(2)]
    lines = printed(tables, 80)
    assert lines.count("Paired.") == 1
    assert lines.count("a: once") == 2


def everything() -> Iterator[list[Section]]:
    yield request.sections(Request(), [RESULTS / "ablation"])
    profiles = [make_profile("none", "all", (8,)), make_profile("cdpruner", "16", (3,), params={"relevance": "words"})]
    yield efficiency.sections(profiles)
    yield request._paper(Request(paper=True))
    run = runs.Run(Path(), (make_record("none", None, "pope", 50.0), make_record("grid", 16, "mme", 40.0)), ())
    yield [table for each in runs.comparisons([run]) for table in request._comparison(each, Request(compare=True))]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_there_are_fit(width: int) -> None:
    for sections in everything():
        lines = printed(sections, width)
        assert max(map(cell_len, lines)) <= width
        for section in sections:
            labels = [row.cells[0].text for row in section.rows if row.kind != "group"]
            for label in set(labels):
                same = [line for line in lines if line.startswith((f"{label} ", f"{label}\n"))]
                assert not label or len(label) > width // 3 or len(same) >= labels.count(label)
