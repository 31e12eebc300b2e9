"""Sources of image-caption pairs: toy scenes, parquet, JSON lines with images, WebDataset tars, the hub.

A source maps an index to an example; `dpbench.diffprune.data` decides their order.
"""

import logging
import re
from collections.abc import Callable
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image

from dpbench.diffprune.example import Example, Source
from dpbench.diffprune.folder_source import FolderSource
from dpbench.diffprune.parquet_source import ParquetSource
from dpbench.diffprune.system_files import is_system_file
from dpbench.diffprune.tar_source import TarSource
from dpbench.errors import ConfigError
from dpbench.toy.questions import caption
from dpbench.toy.scenes import draw, training_scene

TOY = "toy"
TOY_LENGTH = 1 << 20
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_log = logging.getLogger(__name__)
_OTHER_SPLITS = ("val", "test")  # prefixes of the files of a hub repository's other splits
_REMEDY = (
    "give 'toy', a file, folder or pattern of *.parquet, *.jsonl or uncompressed *.tar, or a hub dataset as owner/name"
)


def open_source(data: str, *, seed: int, mention: Callable[[str], None] = _log.warning) -> Source:
    """Open the data that `--data` names.

    Args:
        data: "toy"; a file, folder or pattern whose files' suffix decides (parquet, jsonl, tar); or a hub dataset.
        seed: of the toy scenes.
        mention: is told what is not read although it is there.

    Raises:
        ConfigError: it is none of these, is empty, mixes formats, or has a file that cannot be used.
        MissingError: the hub does not have the dataset, or refuses it.
    """
    if data == TOY:
        return ToySource(seed)
    files = find_files(data)
    source = _SOURCES[_format_of(data, files)](data, files, mention)
    if not len(source):
        raise ConfigError(f"--data {data}: it has no examples; {_REMEDY}")
    return source


def _format_of(data: str, files: list[Path]) -> str:
    """Return the suffix that all files share; for a hub dataset that of parquet."""
    formats = sorted({file.suffix.lower() for file in files})
    if len(formats) > 1:
        raise ConfigError(
            f"--data {data}: it has files of several formats ({', '.join(formats)}); give a pattern for one"
        )
    if formats:
        return formats[0]
    path = Path(data)
    if path.exists():
        what = "the folder has no" if path.is_dir() else "the file is not a"
        raise ConfigError(f"--data {data}: {what} *.parquet, *.jsonl or *.tar file; {_REMEDY}")
    if _HUB_ID.fullmatch(data) and path.suffix.lower() not in _SOURCES:
        return ".parquet"
    raise ConfigError(f"--data {data}: there is no such file or folder; {_REMEDY}")


def _is_data_file(file: Path) -> bool:
    return file.suffix.lower() in _SOURCES and file.is_file()


def find_files(data: str) -> list[Path]:
    """Return the data files that a file, folder or pattern names, sorted; none if nothing is there.

    In a folder these are its files, or if it has none those of its sub-folders. Files of a validation or test split
    (val*, test*) are skipped if there are others. A pattern has wildcards or one range as in shard-{0000..0003}.tar.

    Raises:
        ConfigError: a file of a range is missing.
    """
    path = Path(data)
    if path.is_dir():
        return _files_in(path)
    if path.is_file():
        return list(filter(_is_data_file, [path]))
    matches = {part: [Path(name) for name in glob(part, recursive=True)] for part in _expand_range(data)}
    missing = [part for part, files in matches.items() if not files]
    if len(missing) < len(matches) and missing:
        raise ConfigError(f"--data {data}: {missing[0]} is missing; fetch it or give a range without it")
    return sorted(file for files in matches.values() for file in files if _is_data_file(file))


def _files_in(folder: Path) -> list[Path]:
    files = _visible(folder, "*") or _visible(folder, "*/*")
    return [file for file in files if not file.name.startswith(_OTHER_SPLITS)] or files


def _visible(folder: Path, pattern: str) -> list[Path]:
    files = filter(_is_data_file, folder.glob(pattern))
    return sorted(file for file in files if not is_system_file(file.relative_to(folder)))


def _expand_range(pattern: str) -> list[str]:
    """Expand {first..last} in a pattern, the numbers as wide as the first."""
    parts = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not parts:
        return [pattern]
    head, first, last, tail = parts.groups()
    return [f"{head}{number:0{len(first)}}{tail}" for number in range(int(first), int(last) + 1)]


class ToySource:
    """Toy scenes that no toy benchmark contains; a scene is a function of (seed, index)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __len__(self) -> int:
        return TOY_LENGTH

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self._seed, 0, index])
        scene = training_scene(rng)
        return Example(Image.fromarray(draw([scene], rng)[0]), caption(scene))


_SOURCES: dict[str, Callable[[str, list[Path], Callable[[str], None]], Source]] = {
    ".parquet": lambda data, files, _: ParquetSource(data, files),
    ".jsonl": lambda _, files, __: FolderSource(files),
    ".tar": lambda _, files, mention: TarSource(files, mention),
}
