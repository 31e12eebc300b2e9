"""Open the images of a parquet file in batches: all of them, or a few from a few row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from dpbench.tasks.data.image_file import UNREADABLE, open_image

BATCH = 64
QUICK_GROUPS, QUICK_ROWS = 4, 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive rows of an image column.

    Attributes:
        first: number of the first row in the file.
        values: per row an image as stored in the parquet file, or a list of images.
    """

    first: int
    values: Sequence[Any]

    def find_broken(self) -> list[str]:
        """Return the rows with an image that cannot be decoded, and why."""
        # An empty list is not a failure: SEED-Bench's video rows need not have frames.
        images = [(self.first + n, image) for n, value in enumerate(self.values) for image in _as_list(value)]
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
            causes = list(pool.map(_cause, (image for _, image in images)))
        return [f"row {row} {cause}" for (row, _), cause in zip(images, causes, strict=True) if cause]


def batches(table: pq.ParquetFile, column: str | None, *, quick: bool) -> Iterator[Batch]:
    """Yield an image column in batches; nothing if there is no such column.

    Args:
        table: an open parquet file.
        column: name of the image column.
        quick: only the first rows of a few row groups, evenly spaced.
    """
    if column is None or column not in table.schema_arrow.names:
        return
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    step = max(1, len(sizes) // QUICK_GROUPS) if quick else 1
    for group in range(0, len(sizes), step):
        at = sum(sizes[:group])
        pieces = table.iter_batches(QUICK_ROWS if quick else BATCH, row_groups=[group], columns=[column])
        for piece in islice(pieces, 1 if quick else None):
            yield Batch(at, piece.column(0).to_pylist())
            at += piece.num_rows


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _cause(image: Any) -> str | None:
    """Return why an image cannot be decoded, or None if it can be."""
    if not image or not image["bytes"]:
        return "is empty"
    try:
        open_image(image["bytes"])
    except UNREADABLE as error:
        return f"cannot be decoded ({' '.join(str(error).split())[:120]})"
    return None
