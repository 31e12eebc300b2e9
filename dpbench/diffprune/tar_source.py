"""Image-caption pairs in the tar files of a WebDataset."""

import json
import tarfile
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Any

from dpbench.diffprune.example import Example, decode, reading
from dpbench.errors import ConfigError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


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


class TarSource:
    """Pairs in WebDataset shards: members that differ in suffix only, an image and a .txt or .json with "caption".

    All headers are read at the start. Of two members with the same name the last one counts, as in tar. An image
    without a caption is a broken example; other members are ignored.

    Args:
        shards: *.tar, uncompressed.

    Raises:
        ConfigError: a shard is compressed, truncated or not a tar file.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._pairs = [pair for shard in shards for pair in _tar_pairs(shard)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        image, text = self._pairs[index]
        with reading(f"{image.shard} member {image.name}"):
            return decode(image.read(), _member_text(text) if text else None)


def _tar_pairs(shard: Path) -> list[tuple[_Member, _Member | None]]:
    """Pair the members of a shard by their name without suffix; a .txt wins over a .json."""
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
    """Read the headers of a shard."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [_Member(shard, item.name, item.offset_data, item.size) for item in tar if item.isfile()]
            end = _Member(shard, "", tar.offset, tarfile.BLOCKSIZE).read()
        # tarfile accepts a file that was cut between two members; a complete one ends in a block of zeros
        if end != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark after the last member")
    except tarfile.TarError as error:
        raise ConfigError(f"--data: {shard} {_describe_bad_tar(shard, error)}") from None
    return members


def _describe_bad_tar(shard: Path, error: tarfile.TarError) -> str:
    if _Member(shard, "", 0, 8).read().startswith(_COMPRESSED):
        return "is compressed, but examples are read in random order; decompress it (gunzip, unzstd, ...)"
    return f"is truncated or not a tar file ({error}); fetch it again"


def _member_text(member: _Member) -> Any:
    text = member.read().decode()
    if member.name.endswith(".txt"):
        return text
    entry = json.loads(text)
    return entry.get("caption") if isinstance(entry, dict) else None
