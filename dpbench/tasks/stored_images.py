"""Which image files does a sample have? Read from parquet columns of images, or from images stored apart; undecoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import datasets
from datasets import Image as ImageColumn

ImageFiles = Callable[[int], list[bytes]]
"""Returns the image files of a sample, by its number; an image that is not there is empty."""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Images that are stored apart from their questions (GQA), by id."""

    images: datasets.Dataset
    row_of: Mapping[str, int]

    @classmethod
    def load(cls, paths: Sequence[Path]) -> ImageTable:
        """Open a split of images with their ids."""
        images = datasets.load_dataset("parquet", data_files=literal_paths(paths), split="train")
        return cls(images, {image_id: row for row, image_id in enumerate(images["id"])})

    def files(self, docs: datasets.Dataset) -> ImageFiles:
        """Return a function that reads the image file of a sample, by its number."""
        ids, file_of = docs["imageId"], image_files(self.images)
        return lambda doc_id: file_of(self.row_of[ids[doc_id]]) if ids[doc_id] in self.row_of else [b""]


def image_files(docs: datasets.Dataset) -> ImageFiles:
    """Return a function that reads the image files of a row without decoding them."""
    columns = [name for name, kind in docs.features.items() if isinstance(getattr(kind, "feature", kind), ImageColumn)]
    rows = docs.select_columns(columns).with_format("arrow")

    def read(row: int) -> list[bytes]:
        cells = [cell for column in rows[row].columns for cell in column.to_pylist()]
        return [_read_entry(entry) for cell in cells for entry in (cell if isinstance(cell, list) else [cell])] or [b""]

    return read


def _read_entry(entry: Mapping[str, Any] | None) -> bytes:
    """Return an image file; empty if the row has none, which decoding reports later."""
    if entry is None:
        return b""
    if entry["bytes"] is None and entry["path"] is not None:
        return Path(entry["path"]).read_bytes()
    return entry["bytes"] or b""


def literal_paths(paths: Sequence[Path]) -> list[str]:
    """Return paths that `datasets` takes literally.

    It reads [, ? and * as patterns, so they are escaped. Patterns do not follow linked folders, so those are resolved.
    """
    return [escape(str(path.parent.resolve() / path.name)) for path in paths]
