"""Read the rows of a table that has ours below the paper's, for tests."""

from typing import Any

from dpbench.report.tables.table import Section


def lines(section: Section, name: str, group: str = "") -> list[list[str]]:
    """Return what a row and the two below it say, each cell with the letters of its footnotes."""
    texts = [["".join((cell.text, *cell.refs)) for cell in each.cells] for each in section.rows]
    start = next(at for at, each in enumerate(texts) if group in each[0]) if group else 0
    at = next(at for at, each in enumerate(texts) if at >= start and each[0] == name)
    return texts[at : at + 3]


def column(section: Section, title: str, name: str = "Vanilla", group: str = "") -> list[str]:
    """Return theirs, ours and the difference of a row in one column."""
    at = section.columns.index(title)
    return [each[at] for each in lines(section, name, group)]


def csv(section: Section, title: str, name: str = "Vanilla") -> dict[str, Any]:
    """Return what CSV and JSON have of a column of the first row of a name, without what is missing."""
    frame = section.frame[(section.frame["Row"] == name) & (section.frame["Column"] == title)]
    return {key: value for key, value in frame.iloc[0].items() if value is not None and value == value}
