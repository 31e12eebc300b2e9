"""A disk that is full or read-only is one sentence, and damages nothing written before. No torch."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from dpbench.errors import ConfigError, DpbenchError, StorageError

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def is_disk_error(error: BaseException) -> bool:
    """Return True if the error means the disk is full, over quota or read-only."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a sentence of what the disk says while a file, or a folder's files, are written.

    Raises:
        StorageError: inside the block the disk was full or read-only.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise refused(error.filename or path, error.strerror or str(error)) from error


def refused(path: Path | str, reason: str) -> StorageError:
    """Return the error for a file that could not be written."""
    return StorageError(
        f"{path}: cannot be written ({reason}); what was finished is kept: free some room and start again to go on"
    )


def append(path: Path, data: bytes, *, sync: bool) -> None:
    """Add bytes to a file: all of them, or none.

    Args:
        path: is made where it is not there.
        data: what to add.
        sync: wait until the disk has them.

    Raises:
        StorageError: they cannot be written; the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
            if sync:
                os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(before)
            raise


def replace(path: Path, data: bytes) -> None:
    """Write a file as a whole; until the disk has it, the old one stays. Of several processes the last one wins.

    Raises:
        StorageError: it cannot be written; the file is as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_output(flag: str, path: Path, data: bytes) -> None:
    """Write a file that the user named, as a whole, and the folders above it.

    Args:
        flag: named it.
        path: the file.
        data: its content.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, data)
    except (OSError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        reason = getattr(cause, "strerror", None) or str(cause)
        raise ConfigError(f"{flag}: {path} cannot be written ({reason}); give another path") from None


def check_writable(folder: Path) -> None:
    """Refuse a folder for results in which nothing can be written; it is not made yet.

    Raises:
        ConfigError: it is read-only, another's, below a file, or its disk is full.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with TemporaryFile(dir=place) as probe:
            probe.write(b"room?")
    except OSError as error:
        raise ConfigError(
            f"--out: nothing can be written to {folder} ({error.strerror}); give a folder of yours on a disk with room"
        ) from None


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again where bad input is refused inside the block before an answer is in it."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except DpbenchError as error:
        if new and error.exit_code == DpbenchError.exit_code and not any(folder.glob("**/*.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may be in the folder above
                for parent in new[1:]:
                    parent.rmdir()
        raise
