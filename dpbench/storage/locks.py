"""Lock files that name their holder; the operating system releases the locks of a dead process. No torch."""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from dpbench.errors import ConfigError
from dpbench.storage import files

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO})
"""What file systems answer that cannot lock a file."""
DATASETS_REMEDY = "set HF_DATASETS_CACHE to a folder on a local disk"
"""How to use another cache of `datasets`, which locks its files itself."""
_REMEDY = "give --out on a local disk, with a copy of this folder to go on with it"


class BusyError(ConfigError):
    """Another process holds a lock.

    Args:
        folder: the folder that the lock guards.
        holder: who holds it, as `holder` returns it.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(f"{folder}: another dpbench is running there{holder}; wait for it or give another --out")


class NoLocksError(ConfigError):
    """A file system has no locks.

    Args:
        folder: the folder that could not be locked.
        reason: what the operating system says.
        remedy: how to use another folder.
    """

    def __init__(self, folder: Path, reason: str, remedy: str) -> None:
        super().__init__(
            f"{folder}: its file system cannot lock files ({reason}), and without locks two could write there "
            f"at once; {remedy}, or have locks turned on (NFS: start its lock service, or mount it with local_lock=all)"
        )


@contextmanager
def explain_missing_locks(folder: Path, remedy: str) -> Iterator[None]:
    """Turn the error of a file system without locks inside the block into one sentence.

    Args:
        folder: where the block locks files.
        remedy: how to use another folder.

    Raises:
        NoLocksError: the folder's file system has no locks.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise NoLocksError(folder, error.strerror or str(error), remedy) from None
    except NotImplementedError as error:  # earlier versions of filelock in place of ENOSYS
        raise NoLocksError(folder, str(error), remedy) from None


class OwnFileLock(FileLock):
    """A lock of our own class: lmms-eval makes all instances of `FileLock` with one path the same, for good."""


def take(path: Path, *, seconds: float) -> FileLock:
    """Take a lock and write its holder into the file. It is free again once released or garbage collected.

    Args:
        path: the lock file.
        seconds: how long to try.

    Raises:
        BusyError: another process holds it.
        NoLocksError: the file system has none.
        ConfigError: the lock file cannot be opened: it is a folder or a link, or may not be written.
        StorageError: the disk is full or read-only.
    """
    lock = OwnFileLock(path, timeout=seconds)
    try:
        with explain_missing_locks(path.parent, _REMEDY), warnings.catch_warnings(action="ignore"):
            lock.acquire()
    except Timeout:
        raise BusyError(path.parent, holder(path)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        if files.is_disk_error(error):
            raise files.write_error(path, reason) from None
        raise ConfigError(
            f"{path}: cannot be opened as a lock file ({reason}); remove it if it is not dpbench's, make the folder "
            "writable, or give another --out"
        ) from None
    if isinstance(lock, SoftFileLock):  # filelock's stand-in, with a warning; a dead process would hold it for ever
        lock.release()
        raise NoLocksError(path.parent, os.strerror(errno.ENOSYS), _REMEDY)
    # Written in place: replacing the file would leave the lock on the old one. Only people read it, so an error of
    # the disk must not stop the run.
    with suppress(OSError):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}), encoding="utf-8")
    return lock


def holder(path: Path) -> str:
    """Return who holds a lock, in parentheses, to follow "is running there"; empty if the file does not say."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {entry['pid']} on {entry['host']}, since {entry['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
