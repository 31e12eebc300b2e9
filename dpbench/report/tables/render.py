"""Sections as Markdown, LaTeX (booktabs), CSV or JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import DataRow, Line, TableFormat, tabulate

from dpbench.report.tables import csv_files
from dpbench.report.tables.table import Cell, Row, Section

_BODY = TableFormat(
    lineabove=None,
    linebelowheader=Line("\\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=DataRow("", " & ", " \\\\"),
    datarow=DataRow("", " & ", " \\\\"),
    padding=0,
    with_header_hide=None,
)
"""The inside of a booktabs table; tabulate's own latex_booktabs escapes the bold and underlined cells."""

_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_LATEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\|*`]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)|\](?=\())")
"""Characters that Markdown reads as markup; a single underscore or bracket inside a name is not markup."""


def render(section: Section, form: str) -> str:
    """Return one table as text: markdown, latex, csv or json."""
    return render_all([section], form)


def render_all(sections: Sequence[Section], form: str) -> str:
    """Return several tables as one text.

    CSV has them one below the other, see `csv_files`; JSON is a list with one object per table.
    """
    if form == "json":
        return json.dumps([_json(section) for section in sections], indent=1, ensure_ascii=False)
    if form == "csv":
        return csv_files.text(sections)
    render_one = _latex if form == "latex" else _markdown
    return "\n\n".join(render_one(section) for section in sections)


def _json(section: Section) -> dict[str, Any]:
    frame = section.frame.astype(object)
    rows = frame.where(frame.notna(), None).to_dict("records")
    return {
        "name": section.name,
        "heading": section.heading,
        "rows": [_drop_missing(row) for row in rows],
        "notes": list(section.notes),
    }


def _drop_missing(row: dict[Any, Any]) -> dict[str, Any]:
    """Return a row without the values that were not measured."""
    return {str(name): value for name, value in row.items() if value is not None}


def _markdown(section: Section) -> str:
    aligned = ["left", *("right" for _ in section.columns[1:])]
    body = tabulate(
        [[_markdown_cell(cell, row) for cell in row.cells] for row in section.rows],
        headers=[_escape_markdown(name) for name in section.columns],
        tablefmt="pipe",
        colalign=aligned if section.rows else None,
        disable_numparse=True,
    )
    notes = [f"- {_escape_markdown(note)}" for note in section.notes]
    return "\n".join([f"### {_escape_markdown(section.heading)}", "", body, *([""] if notes else []), *notes])


def _markdown_cell(cell: Cell, row: Row) -> str:
    text = _escape_markdown(cell.text)
    if text and (cell.mark == "best" or row.kind == "group"):
        text = f"**{text}**"
    if cell.mark == "second":
        text = f"<u>{text}</u>"
    if text and row.kind == "cited":
        text = f"*{text}*"
    signs, letters = _signs(cell)
    return text + _escape_markdown(signs) + (f"<sup>{letters}</sup>" if letters else "")


def _signs(cell: Cell) -> tuple[str, str]:
    """Return the signs printed beside a cell, such as * and ~, and the letters of its footnotes."""
    signs = "".join(ref for ref in cell.refs if not ref.isalpha())
    return (f" {signs}" if signs else ""), ",".join(ref for ref in cell.refs if ref.isalpha())


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _latex(section: Section) -> str:
    body = tabulate(
        [[_latex_cell(cell, row) for cell in row.cells] for row in section.rows],
        headers=[escape_latex(name) for name in section.columns],
        tablefmt=_BODY,
        disable_numparse=True,
    ).split("\n")
    head, rule, *lines = [line.rstrip() for line in body]
    lines = [
        part
        for row, line in zip(section.rows, lines, strict=True)
        for part in (_latex_group(row, len(section.columns)) if row.kind == "group" else (line,))
    ]
    lines = lines[1:] if lines[:1] == [rule] else lines
    notes = [f"\\par\\footnotesize {escape_latex(note)}" for note in section.notes]
    columns = "l" + "r" * (len(section.columns) - 1)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,xcolor}",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{escape_latex(section.heading)}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            *("\\toprule", head, rule, *lines, "\\bottomrule"),
            "\\end{tabular}",
            *notes,
            "\\end{table}",
        ]
    )


def _latex_group(row: Row, num_columns: int) -> tuple[str, str, str]:
    text = f"\\textit{{{escape_latex(row.cells[0].text)}}}"
    return "\\midrule", f"\\multicolumn{{{num_columns}}}{{l}}{{{text}}} \\\\", "\\midrule"


def _latex_cell(cell: Cell, row: Row) -> str:
    text = _MINUS.sub("$-$", escape_latex(cell.text))
    if cell.mark:
        text = f"\\{'textbf' if cell.mark == 'best' else 'underline'}{{{text}}}"
    if text and row.kind == "cited":
        text = f"\\textcolor{{gray}}{{{text}}}"
    signs, letters = _signs(cell)
    return text + escape_latex(signs) + (f"\\textsuperscript{{{letters}}}" if letters else "")


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def frame_of(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return rows as a frame whose columns come in order of first mention."""
    names = columns if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame(rows, columns=list(names))
