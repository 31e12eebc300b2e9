"""Decode the images of a parquet file in batches: all of them, or a few from a few row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageFile

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
        with refuse_truncated_images(), ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
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


class _TruncatedImagesRefused:
    """Pillow's setting for truncated images, a global: the first thread in sets it, the last one out restores it."""

    def __init__(self) -> None:
        self.lock, self.inside, self.lenient = Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False  # Pillow has no other switch, and lmms-eval sets it to True
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.lenient  # as it was before


_TRUNCATED_IMAGES_REFUSED = _TruncatedImagesRefused()


def refuse_truncated_images() -> _TruncatedImagesRefused:
    """Make Pillow refuse truncated images; importing lmms-eval makes it fill the missing part with grey."""
    return _TRUNCATED_IMAGES_REFUSED


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _cause(image: Any) -> str | None:
    """Return why an image cannot be decoded, or None if it can be."""
    if not image or not image["bytes"]:
        return "is empty"
    try:
        with Image.open(BytesIO(image["bytes"])) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({' '.join(str(error).split())[:120]})"
    return None
