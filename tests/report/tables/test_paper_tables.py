"""The paper's tables alone: marks, cited rows, notes of columns and rows, and what is computed from them."""

from dpbench.report.tables import paper_tables
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section


def section(table: int) -> Section:
    (found,) = paper_tables.sections([table])
    return found


def test_cited_rows_are_grey_where_there_are_colours() -> None:
    row = next(row for row in section(1).rows if row.cells[0].text.startswith("VoCo"))
    assert row.kind == "cited"
    assert "\\textcolor{gray}{VoCo-LLaMA (CVPR'25)}\\textsuperscript{c}" in render(section(1), "latex")
    assert "*VoCo-LLaMA (CVPR'25)*<sup>c</sup>" in render(section(1), "markdown")
    assert any(note.startswith("c: cited as printed, not run here: it trains the") for note in section(1).notes)


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


def test_columns_and_protocol_are_below_the_table_with_their_source() -> None:
    notes = section(1).notes
    assert (
        "POPE: F1, the mean of the three splits (inferred: 85.9 is LLaVA-1.5's F1, its accuracy is near 87)." in notes
    )
    (protocol,) = [note for note in notes if note.startswith("Protocol: ")]
    assert "; prompt vicuna_v1 (inferred: appendix A builds on the LLaVA-v1.5 codebase); " in protocol
    assert "; ocr true (" in protocol
    assert protocol.endswith("; attention not stated.")
    assert "min_pixels not stated: 200,704 in lmms-eval" in "".join(section(3).notes)


def test_a_row_that_cannot_be_met_has_a_letter() -> None:
    names = {row.cells[0].text: row.cells[0].refs for row in section(1).rows}
    assert (names["FastV (ECCV'24)"], names["PDrop (CVPR'25)"], names["DiffPrune (Ours)"]) == (("a",), ("b",), ())
    assert section(4).rows[2].cells[0].refs == ("a",)
    assert section(4).notes[-1].startswith("a: 4.89 T are those of halving at layers 8, 16, 24")


def test_table_four_speed_ups_are_computed() -> None:
    assert [row.cells[-1].text for row in section(4).rows] == ["1.00x", "1.29x", "1.41x", "1.93x", "2.03x"]
