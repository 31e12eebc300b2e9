"""Safe writing: a full or read-only disk gives one sentence and damages nothing written before. No torch."""

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
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk error inside the block into one sentence; `path` is named where the error names no file.

    Raises:
        StorageError: the disk is full, over quota or read-only.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise write_error(error.filename or path, error.strerror or str(error)) from error


def write_error(path: Path | str, reason: str) -> StorageError:
    """Return the error for a file that could not be written."""
    return StorageError(
        f"{path}: cannot be written ({reason}); finished work is kept: free some space, then run the same command again"
    )


def append(path: Path, data: bytes, *, sync: bool) -> None:
    """Append all of the data to a file, or nothing; a missing file and its folder are created.

    Args:
        path: the file.
        data: what to append.
        sync: wait until the data is on the disk.

    Raises:
        StorageError: the disk has an error; the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_disk_errors(path), path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            rest = memoryview(data)
            while rest:  # an unbuffered write may take only a part
                rest = rest[stream.write(rest) :]
            if sync:
                os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(before)
            raise


def replace(path: Path, data: bytes) -> None:
    """Write a whole file; the old one stays until the new one is on the disk. Of several processes the last one wins.

    Raises:
        StorageError: the disk has an error; the file is as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # per process: shards write the same header
    with explain_disk_errors(path):
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # before the rename, else a power cut may leave an empty file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_output(flag: str, path: Path, data: bytes) -> None:
    """Write a file that the user named, and create the folders above it.

    Args:
        flag: the flag that named the file.
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
        blocker = next((parent for parent in path.parents if parent.is_file()), None)
        reason = reason if blocker is None else f"{blocker} is a file, not a folder"
        raise ConfigError(f"{flag}: {path} cannot be written ({reason}); give another path") from None


def check_writable(folder: Path) -> None:
    """Check that results can be written to a folder, which need not exist yet.

    Raises:
        ConfigError: it is read-only, belongs to another user, lies below a file, or its disk is full.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=existing) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise ConfigError(
            f"--out: cannot write to {folder} ({error.strerror}); give a folder that you own on a disk with free space"
        ) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder; remove it again if the block refuses its input before any answer or record was written."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except DpbenchError as error:
        if new and error.exit_code == DpbenchError.exit_code and not any(folder.glob("**/*.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may have put something into the folder above
                for parent in new[1:]:
                    parent.rmdir()
        raise
