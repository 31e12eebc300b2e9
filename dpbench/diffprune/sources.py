"""Image-caption pairs that train the scorer: toy scenes, parquet, JSON lines with images, WebDataset tars, the hub.

A source maps an index to an example; `dpbench.diffprune.data` decides their order.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from io import BytesIO
from os.path import join, splitext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from dpbench.errors import ConfigError, MissingError
from dpbench.toy.questions import caption
from dpbench.toy.scenes import draw, training_scene

TOY = "toy"
TOY_LENGTH = 1 << 20
CAPTION_COLUMNS = ("caption_enriched", "caption")  # the first is that of visual-layer/imagenet-1k-vl-enriched
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ELSEWHERE = ("val", "test")  # how the files of a hub repository's other splits begin
_WANTED = (
    "give 'toy', a file, folder or pattern of *.parquet, *.jsonl or uncompressed *.tar, or a hub dataset as owner/name"
)
_EMPTY = f"there is not one example in it; {_WANTED}"


class BrokenError(Exception):
    """An example cannot be read; the text names it (file, row or tar member) and says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, RGB and fully decoded, and the text that describes it."""

    image: Image.Image
    caption: str


class Source(Protocol):
    """Examples by index, 0 <= index < length; reading a broken one raises BrokenError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


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
    source = _SOURCES[_form_of(data, found_files(data))](data)
    if not len(source):
        raise ConfigError(f"--data {data}: {_EMPTY}")
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


class ParquetSource:
    """Rows of parquet files or of a hub dataset's split "train": an `image`, and one of CAPTION_COLUMNS.

    Args:
        data: a file, folder or pattern of *.parquet, or owner/name on the hub.

    Raises:
        ConfigError: a column is missing, a file cannot be read, or `datasets` is not installed.
        MissingError: the hub has or gives no such dataset.
    """

    def __init__(self, data: str) -> None:
        files = found_files(data)
        rows = _file_rows(data, files) if files else _hub_rows(data)
        self._data, self._caption = data, _caption_column(rows.column_names, data)
        self._rows = _undecoded(rows.select_columns(["image", self._caption]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[int(index)]
        with _reading(f"{self._data} row {index}"):
            return _example(_image_bytes(row["image"]), row[self._caption])


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError("--data: parquet files and hub datasets need a library; pip install datasets") from None
    return datasets


def _file_rows(data: str, files: list[Path]) -> Any:
    """Load local files that have rows; all columns are looked at first, as loading converts every file to Arrow."""
    datasets = _datasets()
    footers = {str(file): _footer(file) for file in files}
    columns = [_caption_column(footer.schema.to_arrow_schema().names, file) for file, footer in footers.items()]
    filled = [file for file, footer in footers.items() if footer.num_rows]
    if not filled:
        raise ConfigError(f"--data {data}: {_EMPTY}")
    try:
        return datasets.load_dataset(
            "parquet", data_files=[escape(file) for file in filled], split="train", columns=["image", columns[0]]
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"--data {data}: its files do not load as one dataset ({_first_line(error.__cause__ or error)}); "
            "give a pattern for those of one, or fetch a damaged one again"
        ) from None


def _footer(file: Path) -> Any:
    from pyarrow.parquet import read_metadata

    try:
        return read_metadata(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--data: {file} is no whole parquet file ({_first_line(error)}); fetch it again") from None


def _hub_rows(repository: str) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(repository, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingError(
            f"--data {repository}: it is no file or folder here, and the hub gave no split 'train' of such a dataset "
            f"({_first_line(error)}); check the name, log in with hf auth login if it is gated, or fetch it where "
            f"there is a network (hf download --repo-type dataset {repository} --local-dir FOLDER) and give the folder"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _caption_column(names: list[str], where: str) -> str:
    """Return the first of CAPTION_COLUMNS there is; without it or `image` there is nothing to train on."""
    present = [name for name in CAPTION_COLUMNS if name in names]
    if "image" not in names or not present:
        raise ConfigError(
            f"--data: {where} has the columns {', '.join(names)}; it needs 'image' and "
            f"{' or '.join(map(repr, CAPTION_COLUMNS))}, so rename them or give other data"
        )
    return present[0]


def _undecoded(rows: Any) -> Any:
    """Leave decoding to `_example`, which tells which row is broken."""
    datasets = _datasets()
    if isinstance(rows.features["image"], datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    return rows


def _image_bytes(cell: Any) -> bytes:
    """Return an encoded image from a cell: the bytes, or {"bytes": them or None, "path": a file}."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("there is no image")
    return bytes(cell.get("bytes") or Path(cell["path"]).read_bytes())


class FolderSource:
    """Images named by *.jsonl files, a line each: {"image": path from the file's folder, "caption": text}.

    The keys "file_name" and "text", as in an imagefolder's metadata.jsonl, do as well.

    Args:
        data: a file, folder or pattern of *.jsonl.

    Raises:
        ConfigError: a line is malformed; names file and line.
    """

    def __init__(self, data: str) -> None:
        self._pairs = [pair for file in found_files(data) for pair in _jsonl_pairs(file)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        path, text = self._pairs[index]
        with _reading(path):
            return _example(Path(path).read_bytes(), text)


def _jsonl_pairs(file: Path) -> Iterator[tuple[str, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                image, text = _jsonl_pair(line, f"--data: {file} line {number}")
                yield join(file.parent, image), text


def _jsonl_pair(line: bytes, where: str) -> tuple[str, str]:
    wanted = 'write {"image": path, "caption": text}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}); {wanted}") from None
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is no object but {type(entry).__name__}; {wanted}")
    image, text = entry.get("image", entry.get("file_name")), entry.get("caption", entry.get("text"))
    if not isinstance(image, str) or not isinstance(text, str):
        raise ConfigError(f"{where} has {', '.join(entry) or 'no keys'}, not an image's path and a text; {wanted}")
    return image, text


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a file lies in a shard; `start` and `size` in bytes."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """Return the file; the shard is opened anew, as workers must not share a place in it."""
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class TarSource:
    """Pairs in WebDataset shards: members that differ in suffix only, an image and a .txt or .json with "caption".

    All headers are read at the start. Of two members with one name the last counts, as in tar; an image without a
    caption is a broken example, and other members are left alone.

    Args:
        data: a file, folder or pattern of *.tar, uncompressed.

    Raises:
        ConfigError: a shard is compressed, truncated or no tar.
    """

    def __init__(self, data: str) -> None:
        self._pairs = [pair for shard in found_files(data) for pair in _tar_pairs(shard)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        image, text = self._pairs[index]
        with _reading(f"{image.shard} member {image.name}"):
            return _example(image.read(), _member_text(text) if text else None)


def _tar_pairs(shard: Path) -> list[tuple[_Member, _Member | None]]:
    """Pair a shard's members by what comes before the suffix; a .txt goes before a .json."""
    images: dict[str, _Member] = {}
    texts: dict[str, _Member] = {}
    for member in _members(shard):
        stem, suffix = splitext(member.name)
        if suffix.lower() in IMAGE_SUFFIXES:
            images[stem] = member
        elif suffix in (".txt", ".json"):
            texts[stem + suffix] = member
    return [(image, texts.get(f"{stem}.txt", texts.get(f"{stem}.json"))) for stem, image in images.items()]


def _members(shard: Path) -> list[_Member]:
    """Read a shard's headers; tarfile takes one that ends between members for whole, the zeros at the end tell."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [_Member(shard, item.name, item.offset_data, item.size) for item in tar if item.isfile()]
            end = _Member(shard, "", tar.offset, tarfile.BLOCKSIZE).read()
        if end != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark after the last member")
    except tarfile.TarError as error:
        raise ConfigError(f"--data: {shard} {_why_no_tar(shard, error)}") from None
    return members


def _why_no_tar(shard: Path, error: tarfile.TarError) -> str:
    if _Member(shard, "", 0, 8).read().startswith(_COMPRESSED):
        return "is compressed, and examples are read from any place in it; decompress it (gunzip, unzstd, ...)"
    return f"is truncated or no tar ({error}); fetch it again"


def _member_text(member: _Member) -> Any:
    text = member.read().decode()
    if member.name.endswith(".txt"):
        return text
    entry = json.loads(text)
    return entry.get("caption") if isinstance(entry, dict) else None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Name the example in whatever goes wrong: PIL's decoders raise errors of many kinds on broken bytes."""
    try:
        yield
    except Exception as error:
        raise BrokenError(f"{name}: {_first_line(error)}") from None


def _example(data: bytes, text: object) -> Example:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no caption")
    try:
        with Image.open(BytesIO(data)) as image:
            return Example(image.convert("RGB"), text.strip())
    except UnidentifiedImageError:  # its own text has an address in memory
        raise ValueError(f"its {len(data)} bytes are no image PIL knows") from None


_SOURCES: dict[str, Callable[[str], Source]] = {".parquet": ParquetSource, ".jsonl": FolderSource, ".tar": TarSource}
