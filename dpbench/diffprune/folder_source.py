"""Image-caption pairs in JSON lines next to the image files."""

import json
from collections.abc import Iterator
from os.path import join
from pathlib import Path

from dpbench.diffprune.example import Example, decode, reading
from dpbench.errors import ConfigError


class FolderSource:
    """Images named by *.jsonl files, a line each: {"image": path from the file's folder, "caption": text}.

    The keys "file_name" and "text" work too, as in the metadata.jsonl of an imagefolder.

    Args:
        files: *.jsonl.

    Raises:
        ConfigError: a line is malformed; names file and line.
    """

    def __init__(self, files: list[Path]) -> None:
        self._pairs = [pair for file in files for pair in _jsonl_pairs(file)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        path, text = self._pairs[index]
        with reading(path):
            return decode(Path(path).read_bytes(), text)


def _jsonl_pairs(file: Path) -> Iterator[tuple[str, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                image, text = _jsonl_pair(line, f"--data: {file} line {number}")
                yield join(file.parent, image), text


def _jsonl_pair(line: bytes, where: str) -> tuple[str, str]:
    remedy = 'write {"image": path, "caption": text}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error}); {remedy}") from None
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be an object, got {type(entry).__name__}; {remedy}")
    image, text = entry.get("image", entry.get("file_name")), entry.get("caption", entry.get("text"))
    if not isinstance(image, str) or not isinstance(text, str):
        raise ConfigError(
            f"{where} has the keys {', '.join(entry) or 'none'}, not an image's path and a text; {remedy}"
        )
    return image, text
