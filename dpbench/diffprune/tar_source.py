"""Image-caption pairs in the tar files of a WebDataset."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dpbench.diffprune.captions import CAPTION_NAMES, caption_names, caption_values
from dpbench.diffprune.example import Example, decode, reading
from dpbench.diffprune.system_files import is_system_file
from dpbench.errors import ConfigError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm")
_TEXT_SUFFIXES = ("txt", *CAPTION_NAMES, "json")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_CHUNK = 1 << 20  # bytes read at once where only zeros are expected


@dataclass(frozen=True, slots=True)
class _Member:
    """Position of a file in a shard; `start` and `size` in bytes."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """Read the file; the shard is opened each time, because workers must not share a file position."""
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class _Pair(NamedTuple):
    """The members of a sample that may be its image, of which there must be one, and those that may be its caption."""

    images: tuple[_Member, ...]
    texts: tuple[_Member, ...]


class TarSource:
    """Pairs in WebDataset shards: members with the same key, an image and a .txt, .caption or .json with a caption.

    A key is a member's path up to the first dot of its file name; what follows is its suffix, in any case. A plain
    suffix goes before a longer one: of 1.png and 1.mask.png the first is the image. All headers are read at the
    start. Of two members with the same name the last one counts, as in tar. An image without a caption is a broken
    example; other members, and what an operating system adds to archives, are ignored.

    Args:
        shards: *.tar, uncompressed.
        mention: is told what is not read in a shard that looks joined from several.

    Raises:
        ConfigError: a shard is compressed, truncated or not a tar file; or none has an image.
    """

    def __init__(self, shards: list[Path], mention: Callable[[str], None]) -> None:
        members = {shard: _members(shard, mention) for shard in shards}
        self._pairs = [pair for found in members.values() for pair in _tar_pairs(found)]
        names = [member.name for found in members.values() for member in found]
        if names and not self._pairs:
            raise ConfigError(
                f"--data: of {len(names)} members in {shards[0]}{' and others' if shards[1:] else ''} none is an image "
                f"({', '.join(names[:3])}, ...); give shards with images ({', '.join(IMAGE_SUFFIXES)}) and captions"
            )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        images, texts = self._pairs[index]
        with reading(f"{images[0].shard} member {images[0].name}"):
            if len(images) > 1:
                names = ", ".join(PurePosixPath(image.name).name for image in images)
                raise ValueError(f"several images have the same key, which ends at the first dot: {names}")
            return decode(images[0].read(), _captions(texts))


def _tar_pairs(members: list[_Member]) -> list[_Pair]:
    """Group the members of a shard by their key."""
    samples: dict[str, dict[str, _Member]] = {}
    for member in members:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        samples.setdefault(str(path.with_name(stem)), {})[suffix.lower()] = member
    pairs = [_Pair(_images(files), _texts(files)) for files in samples.values()]
    return [pair for pair in pairs if pair.images]


def _images(files: dict[str, _Member]) -> tuple[_Member, ...]:
    """Return the first image with a plain suffix, else all that have a longer one."""
    plain = [files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files]
    return tuple(plain[:1] or [file for suffix, file in files.items() if _last(suffix) in IMAGE_SUFFIXES])


def _texts(files: dict[str, _Member]) -> tuple[_Member, ...]:
    """Return the members that may be the caption, the best first; of those with one ending the plain suffix first."""
    known = [suffix for suffix in files if _last(suffix) in _TEXT_SUFFIXES]
    rank = {suffix: (_TEXT_SUFFIXES.index(_last(suffix)), "." in suffix) for suffix in known}
    return tuple(files[suffix] for suffix in sorted(known, key=rank.__getitem__))


def _last(suffix: str) -> str:
    return suffix.rpartition(".")[2]


def _members(shard: Path, mention: Callable[[str], None]) -> list[_Member]:
    """Read the headers of a shard; what an operating system added is left out."""
    try:
        with tarfile.open(shard, "r:") as tar:
            items = list(tar)
            end = tar.offset
        # tarfile accepts a file that was cut between two members; a complete one ends in a block of zeros
        if _Member(shard, "", end, tarfile.BLOCKSIZE).read() != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark after the last member")
    except tarfile.TarError as error:
        raise ConfigError(f"--data: {shard} {_describe_bad_tar(shard, error)}") from None
    num_links = sum(item.islnk() or item.issym() for item in items)
    if num_links:
        mention(
            f"--data: {shard} has {num_links} links to files, and these are not read; pack it with tar --dereference "
            "--hard-dereference"
        )
    if _has_data(shard, end):
        mention(
            f"--data: {shard} goes on for {shard.stat().st_size - end:,} bytes behind its end mark, and these are not "
            "read; if tar files were joined into it, join them with tar --concatenate, or give them one by one"
        )
    members = [_Member(shard, item.name, item.offset_data, item.size) for item in items if item.isfile()]
    return [member for member in members if not is_system_file(PurePosixPath(member.name))]


def _has_data(shard: Path, start: int) -> bool:
    """Return True if a file has anything but zeros from there on."""
    with shard.open("rb") as file:
        file.seek(start)
        return any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(_CHUNK), b""))


def _describe_bad_tar(shard: Path, error: tarfile.TarError) -> str:
    if _Member(shard, "", 0, 8).read().startswith(_COMPRESSED):
        return "is compressed, but examples are read in random order; decompress it (gunzip, unzstd, ...)"
    return f"is truncated or not a tar file ({error}); fetch it again"


def _captions(texts: tuple[_Member, ...]) -> Iterator[object]:
    """Read the members that may be the caption, one after another."""
    for member in texts:
        text = member.read().decode("utf-8-sig")
        if not member.name.lower().endswith(".json"):
            yield text
            continue
        entry = json.loads(text)
        if not isinstance(entry, dict) or not caption_names(entry):
            keys = ", ".join(entry) if isinstance(entry, dict) else "no keys"
            raise ValueError(f"its JSON has {keys}, and none of {', '.join(CAPTION_NAMES)}")
        yield from caption_values(entry)
