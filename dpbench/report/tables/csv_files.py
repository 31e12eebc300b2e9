"""Tables as CSV that `pandas.read_csv` reads: one file a table, or all in one whose first columns say which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dpbench.report.tables.table import Section
from dpbench.storage import files

TABLE, HEADING = "Table name", "Heading"
"""Columns in front of a table's own: its name, and the model, protocol and machine it is of."""


def write(sections: Sequence[Section], folder: Path) -> int:
    """Write one file per table to a folder, and return their number.

    Raises:
        ConfigError: a file cannot be written.
    """
    for name, section in _named(sections):
        frame = section.frame.copy()
        frame.insert(0, HEADING, section.heading)
        files.write_output("--out", folder / f"{name}.csv", _text(frame).encode() + b"\n")
    return len(sections)


def text(sections: Sequence[Section]) -> str:
    """Return a single table as it is; several, one below the other, with the columns of all and two that say which."""
    if len(sections) == 1:
        return _text(sections[0].frame)
    rows = [
        {TABLE: name, HEADING: section.heading, **row}
        for name, section in _named(sections)
        for row in section.frame.astype(object).to_dict("records")
    ]
    # As objects, whole numbers stay whole where other tables have no such column.
    return _text(pd.DataFrame(rows, dtype=object))


def _named(sections: Sequence[Section]) -> Iterator[tuple[str, Section]]:
    """Yield every table with a name of its own: scores, scores-2, ..."""
    seen: Counter[str] = Counter()
    for section in sections:
        seen[section.name] += 1
        count = seen[section.name]
        yield section.name if count == 1 else f"{section.name}-{count}", section


def _text(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n").strip()
