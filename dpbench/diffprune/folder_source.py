"""Image-caption pairs in JSON lines next to the image files."""

import json
from collections.abc import Iterator
from os.path import join
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from dpbench.diffprune.captions import caption_names, caption_values
from dpbench.diffprune.example import Example, decode, reading
from dpbench.errors import ConfigError


class _Line(NamedTuple):
    """One line: its image's path, or where it is if it has none, and what may be its caption, the best first."""

    name: str
    has_image: bool
    captions: list[object]


class FolderSource:
    """Images named by *.jsonl files, a line each: {"image": path from the file's folder, "caption": text}.

    The keys "file_name" and "text" work too, as in the metadata.jsonl of an imagefolder. A line whose image or
    caption is null is a broken example.

    Args:
        files: *.jsonl.

    Raises:
        ConfigError: a line is malformed; names file and line.
    """

    def __init__(self, files: list[Path]) -> None:
        self._lines = [line for file in files for line in _read_lines(file)]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        name, has_image, captions = self._lines[index]
        with reading(name):
            if not has_image:
                raise ValueError("there is no image")
            return decode(_read_image(name), captions)


def _read_image(name: str) -> bytes:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no such file{_explain_missing(name)}")
    return path.read_bytes()


def _explain_missing(name: str) -> str:
    """Return how to write a path of which there is no file; empty if nothing in it is odd."""
    if "://" in name:
        return "; images are not downloaded: fetch them, and write their paths"
    if "\\" in name:
        return "; write its path with / in place of back-slashes"
    if Path(unquote(name)).is_file():
        return "; write its path without % codes"
    return "; a path is taken as it is, so write the home folder out" if "/~" in name else ""


def _read_lines(file: Path) -> Iterator[_Line]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file} line {number}"
                image, captions = _parse(line, where)
                yield _Line(where if image is None else join(file.parent, image), image is not None, captions)


def _parse(line: bytes, where: str) -> tuple[str | None, list[object]]:
    """Return the image's path, None if it is null, and what may be its caption."""
    remedy = 'write {"image": path, "caption": text}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--data: {where} is not JSON ({error}); {remedy}") from None
    if not isinstance(entry, dict):
        raise ConfigError(f"--data: {where} must be an object, got {type(entry).__name__}; {remedy}")
    images = [entry[name] for name in ("image", "file_name") if name in entry]
    image = next((image for image in images if image not in (None, "")), None)
    if not images or not caption_names(entry):
        raise ConfigError(
            f"--data: {where} has the keys {', '.join(entry) or 'none'}, not an image's path and a text; {remedy}"
        )
    if not isinstance(image, str | None):
        raise ConfigError(f"--data: {where} has the image {image!r}, which is not a path; {remedy}")
    return image, caption_values(entry)
