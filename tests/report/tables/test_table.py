"""What a reader sees: numbers, marks, footnotes, and their markup in each format."""

import pandas as pd
import pytest

from dpbench.report.tables.render import escape_latex, render
from dpbench.report.tables.table import Cell, Footnotes, Row, Section, group_row, number, plain_section


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (93.25, 1, False, "93.2"),
        (None, 1, False, "-"),
        (float("nan"), 1, False, "-"),
        (0.0, 1, False, "0.0"),
        (0.0016, 2, False, "0.0016"),  # measured, so not 0.00
        (0.0, 1, True, "+0.0"),
        (-0.01, 1, True, "+0.0"),
        (-12.34, 1, True, "-12.3"),
        (1862.4, 0, False, "1862"),
    ],
)
def test_numbers(value: float | None, digits: int, sign: bool, text: str) -> None:
    assert number(value, digits, sign=sign) == text


def test_a_reason_keeps_its_letter() -> None:
    notes = Footnotes()
    assert [notes.letter(reason) for reason in ("one", "two", "one")] == ["a", "b", "a"]
    assert notes.notes() == ("a: one", "b: two")
    letters = Footnotes()
    assert [letters.letter(str(at)) for at in range(28)][-3:] == ["z", "aa", "ab"]


SECTION = Section(
    "A heading & more",
    pd.DataFrame({"Method": ["x"]}),
    ("One note, 5 %.",),
    ("Method", "Score"),
    (
        group_row("Keep 16", 2),
        Row((Cell("x"), Cell("-1.5", "best"))),
        Row((Cell("y", refs=("a",)), Cell("2.0 [1.0-3.0]", "second", ("*",)))),
        Row((Cell("z"), Cell("-")), "cited"),
    ),
)


def test_markdown_markup() -> None:
    lines = render(SECTION, "markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:8]]
    assert cells == [
        ["**Keep 16**", ""],
        ["x", "**-1.5**"],
        ["y<sup>a</sup>", "<u>2.0 [1.0-3.0]</u> \\*"],
        ["*z*", "*-*"],
    ]


def test_latex_markup() -> None:
    text = " ".join(render(SECTION, "latex").split())
    assert "\\caption{A heading \\& more}" in text
    assert "\\multicolumn{2}{l}{\\textit{Keep 16}} \\\\ \\midrule x & \\textbf{$-$1.5} \\\\" in text
    assert "y\\textsuperscript{a} & \\underline{2.0 [1.0-3.0]} * \\\\" in text
    assert "\\textcolor{gray}{z} & \\textcolor{gray}{-} \\\\ \\bottomrule" in text


def test_every_letter_that_latex_takes_for_itself_is_escaped() -> None:
    assert escape_latex("a_b 5% {x} #1 ~ ^ \\ $") == (
        "a\\_b 5\\% \\{x\\} \\#1 \\textasciitilde{} \\textasciicircum{} \\textbackslash{} \\$"
    )


def test_a_table_without_rows_is_a_heading_and_its_notes() -> None:
    text = render(plain_section("nothing", "Nothing", ("What", "First"), [], ["No difference."]), "markdown")
    assert text.splitlines()[0] == "### Nothing"
    assert text.splitlines()[-1] == "- No difference."
