"""Images with classes, to probe a classifier on: a folder with a sub-folder per class (ImageNet), or parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from PIL import Image

from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.tasks.data.image_file import open_image


class LabelledImages:
    """Images by index, RGB, each with its class.

    Args:
        name: as the user gave it.
        rows: of `datasets`, with `image` (not decoded) and `label`.
        classes: names of the classes, by number.
    """

    def __init__(self, name: str, rows: Any, classes: Sequence[str]) -> None:
        self.name, self.rows, self.classes = name, rows, tuple(classes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its class.

        Raises:
            DpbenchError: the image cannot be read.
        """
        row = self.rows[int(index)]
        file = row["image"]
        try:
            return open_image(file["bytes"] if file["bytes"] is not None else Path(file["path"])), int(row["label"])
        except (OSError, DpbenchError, TypeError, ValueError) as error:
            where = file["path"] or f"row {index}"
            raise ConfigError(f"--data {self.name}: {where} is not an image or has no class ({error})") from None


def open_labelled_images(data: str, num_classes: int) -> LabelledImages:
    """Open images with classes.

    Args:
        data: folder with one sub-folder per class (in the order of their sorted names, or below "val" or "validation"),
            or parquet files with columns `image` and `label`.
        num_classes: classes that the model knows.

    Raises:
        ConfigError: a column is missing, or the number of classes differs from the model's.
        MissingError: there are no such files.
    """
    import datasets

    files = _parquet_files(data)
    if files:
        rows = datasets.load_dataset("parquet", data_files=[escape(file) for file in files], split="train")
    else:
        rows = datasets.load_dataset("imagefolder", data_dir=str(_class_folder(data)), split="train", drop_labels=False)
    if missing := [name for name in ("image", "label") if name not in rows.column_names]:
        raise ConfigError(f"--data {data}: there is no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    classes = _class_names(rows, num_classes)
    if len(classes) != num_classes:
        raise ConfigError(
            f"--data {data}: {len(classes)} classes, the classifier knows {num_classes}; give the data it was trained "
            "for"
        )
    return LabelledImages(data, rows.cast_column("image", datasets.Image(decode=False)), classes)


def _class_names(rows: Any, num_classes: int) -> Sequence[str]:
    """Return the names of the classes; plain numbers are taken as they are if the model knows them all."""
    feature = rows.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    highest = max(rows["label"], default=-1)
    return [str(number) for number in range(num_classes if highest < num_classes else highest + 1)]


def _parquet_files(data: str) -> list[str]:
    path = Path(data).expanduser()
    if path.is_dir():
        return sorted(map(str, path.rglob("*.parquet")))
    return sorted(glob(str(path))) if path.suffix == ".parquet" else []


def _class_folder(data: str) -> Path:
    """Return the folder whose sub-folders are the classes."""
    path = Path(data).expanduser()
    if not path.is_dir():
        raise MissingError(
            f"--data {data}: there is no such folder or parquet file; give one with a sub-folder of images per class, "
            "or *.parquet with columns image and label"
        )
    for name in ("val", "validation"):
        if (path / name).is_dir():
            return path / name
    return path
