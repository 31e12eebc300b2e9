"""Image-caption pairs that train the scorer: toy scenes, parquet, JSON lines with images, WebDataset tars, the hub.

A source maps an index to an example; `dpbench.diffprune.data` decides their order.
"""

import re
from collections.abc import Callable
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image

from dpbench.diffprune.example import Example, Source
from dpbench.diffprune.folder_source import FolderSource
from dpbench.diffprune.parquet_source import ParquetSource
from dpbench.diffprune.tar_source import TarSource
from dpbench.errors import ConfigError
from dpbench.toy.questions import caption
from dpbench.toy.scenes import draw, training_scene

TOY = "toy"
TOY_LENGTH = 1 << 20
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ELSEWHERE = ("val", "test")  # how the files of a hub repository's other splits begin
_WANTED = (
    "give 'toy', a file, folder or pattern of *.parquet, *.jsonl or uncompressed *.tar, or a hub dataset as owner/name"
)


def open_source(data: str, *, seed: int) -> Source:
    """Open what `--data` names.

    Args:
        data: "toy"; a file, folder or pattern whose files' suffix decides (parquet, jsonl, tar); or a hub dataset.
        seed: of the toy scenes.

    Raises:
        ConfigError: it is none of these, is empty, mixes forms, or has a file that cannot be used.
        MissingError: the hub has or gives no such dataset.
    """
    if data == TOY:
        return ToySource(seed)
    files = found_files(data)
    source = _SOURCES[_form_of(data, files)](data, files)
    if not len(source):
        raise ConfigError(f"--data {data}: there is not one example in it; {_WANTED}")
    return source


def _form_of(data: str, files: list[Path]) -> str:
    """Return the one suffix of the files; that of parquet for a hub dataset."""
    forms = sorted({file.suffix for file in files})
    if len(forms) > 1:
        raise ConfigError(f"--data {data}: it has files of several forms ({', '.join(forms)}); give a pattern for one")
    if forms:
        return forms[0]
    path = Path(data)
    if path.exists():
        what = "folder has" if path.is_dir() else "file is"
        raise ConfigError(f"--data {data}: this {what} no *.parquet, *.jsonl or *.tar; {_WANTED}")
    if _HUB_ID.fullmatch(data) and path.suffix not in _SOURCES:
        return ".parquet"
    raise ConfigError(f"--data {data}: there is no such file or folder; {_WANTED}")


def _known(file: Path) -> bool:
    return file.suffix in _SOURCES and file.is_file()


def found_files(data: str) -> list[Path]:
    """Return the data files a file, folder or pattern names, sorted; none for what is not there.

    A folder's files lie in it or, where there are none, in its sub-folders; those of a validation or test split
    (val*, test*) are left out beside others. A pattern has wildcards or one range as in shard-{0000..0003}.tar.

    Raises:
        ConfigError: a part of a range is not there.
    """
    path = Path(data)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return list(filter(_known, [path]))
    matches = {part: [Path(name) for name in glob(part, recursive=True)] for part in _in_range(data)}
    absent = [part for part, files in matches.items() if not files]
    if len(absent) < len(matches) and absent:
        raise ConfigError(f"--data {data}: there is no {absent[0]}; fetch it or give a range without it")
    return sorted(file for files in matches.values() for file in files if _known(file))


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(filter(_known, folder.glob("*"))) or sorted(filter(_known, folder.glob("*/*")))
    return [file for file in files if not file.name.startswith(_ELSEWHERE)] or files


def _in_range(pattern: str) -> list[str]:
    """Write out a pattern's {first..last}, the numbers as wide as the first."""
    parts = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not parts:
        return [pattern]
    head, first, last, tail = parts.groups()
    return [f"{head}{number:0{len(first)}}{tail}" for number in range(int(first), int(last) + 1)]


class ToySource:
    """Scenes that no toy benchmark has, each a function of (seed, index)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __len__(self) -> int:
        return TOY_LENGTH

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self._seed, 0, index])
        scene = training_scene(rng)
        return Example(Image.fromarray(draw([scene], rng)[0]), caption(scene))


_SOURCES: dict[str, Callable[[str, list[Path]], Source]] = {
    ".parquet": ParquetSource,
    ".jsonl": lambda _, files: FolderSource(files),
    ".tar": lambda _, files: TarSource(files),
}
