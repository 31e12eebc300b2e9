"""Image-caption pairs in the tar files of a WebDataset."""

import json
import tarfile
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Any

from dpbench.diffprune.example import Example, decoded, reading
from dpbench.errors import ConfigError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


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
        shards: *.tar, uncompressed.

    Raises:
        ConfigError: a shard is compressed, truncated or no tar.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._pairs = [pair for shard in shards for pair in _tar_pairs(shard)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        image, text = self._pairs[index]
        with reading(f"{image.shard} member {image.name}"):
            return decoded(image.read(), _member_text(text) if text else None)


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
