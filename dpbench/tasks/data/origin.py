"""Where a folder of data came from: one small file beside it, written by whoever fetched or made it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dpbench.errors import RecordError

ORIGIN = ".dpbench-revision.json"
TOY = "toy"
"""Organisation of the mirrors that dpbench makes itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the files of one repository's folder are.

    Attributes:
        repository: organisation and name.
        revision: commit hash on the hub; for the toy mirrors what they were made from.
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
        """Return repository and revision in one word."""
        return f"{self.repository}@{self.revision[:12]}"

    def joined(self, earlier: Origin | None) -> Origin:
        """Add the files an earlier fetch of the same revision brought; those of another revision are forgotten."""
        if earlier is None or (earlier.repository, earlier.revision) != (self.repository, self.revision):
            return self
        return Origin(self.repository, self.revision, {**earlier.files, **self.files})


def write(folder: Path, origin: Origin) -> None:
    """Write where a folder's files came from, whole or not at all."""
    draft = folder / f"{ORIGIN}.part"
    draft.write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / ORIGIN)


def read(folder: Path) -> Origin | None:
    """Return where a folder's files came from, or None if nobody wrote it down.

    Raises:
        RecordError: the file is there and cannot be read.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: not what `dpbench data pull` writes ({error}); remove it and pull again") from None


def cached(folder: Path) -> Origin:
    """Return where a snapshot in the hub's cache came from, as the cache's own names tell.

    Large files are kept under their SHA-256 and linked from the snapshot.
    """
    named = {path.relative_to(folder).as_posix(): path.resolve().name for path in folder.rglob("*.parquet")}
    hashes = {path: blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None for path, blob in named.items()}
    return Origin(folder.parents[1].name.removeprefix("datasets--").replace("--", "/", 1), folder.name, hashes)
