"""Where a folder of data came from: one small file in it, written by whoever fetched or made the data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dpbench.errors import RecordError
from dpbench.storage import files

ORIGIN = ".dpbench-revision.json"
TOY = "toy"
"""Organisation of the mirrors that dpbench makes itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Repository, revision and file hashes of one folder of data.

    Attributes:
        repository: organisation and name.
        revision: commit hash on the hub; for the toy mirrors the seed they were made from.
        files: path inside the repository -> SHA-256 as the hub or the maker states it, None where it states none.
    """

    repository: str
    revision: str
    files: Mapping[str, str | None]

    @property
    def organisation(self) -> str:
        """Return who published the data."""
        return self.repository.partition("/")[0]

    @property
    def label(self) -> str:
        """Return repository and short revision as one word."""
        return f"{self.repository}@{self.revision[:12]}"

    def merge(self, earlier: Origin | None) -> Origin:
        """Return this origin with the files of an earlier fetch; those of another revision are dropped."""
        if earlier is None or (earlier.repository, earlier.revision) != (self.repository, self.revision):
            return self
        return Origin(self.repository, self.revision, {**earlier.files, **self.files})


def write(folder: Path, origin: Origin) -> None:
    """Write the origin of a folder's files.

    Raises:
        StorageError: the disk has an error; an earlier origin is as it was.
    """
    files.replace(folder / ORIGIN, (json.dumps(asdict(origin), indent=2) + "\n").encode())


def read(folder: Path) -> Origin | None:
    """Return the origin of a folder's files, or None if it was never written.

    Raises:
        RecordError: the file exists but cannot be read.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: not what `dpbench data pull` writes ({error}); remove it and pull again") from None


def read_cache(snapshot: Path) -> Origin:
    """Return the origin of a snapshot in the hub's cache, read from the cache's own folder and file names.

    The cache stores large files under their SHA-256 and links them into the snapshot.
    """
    blobs = {path.relative_to(snapshot).as_posix(): path.resolve().name for path in snapshot.rglob("*.parquet")}
    hashes = {path: blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None for path, blob in blobs.items()}
    repository = snapshot.parents[1].name.removeprefix("datasets--").replace("--", "/", 1)
    return Origin(repository, snapshot.name, hashes)
