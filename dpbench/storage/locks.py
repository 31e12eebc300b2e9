"""Lock files that name their holder; the operating system releases the locks of a dead process. No torch."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dpbench.errors import ConfigError


class BusyError(ConfigError):
    """Another process holds a lock.

    Args:
        folder: the folder that the lock guards.
        holder: who holds it, as `holder` returns it.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(f"{folder}: another dpbench is running there{holder}; wait for it or give another --out")


def take(path: Path, *, seconds: float) -> FileLock:
    """Take a lock and write its holder into the file. It is free again once released or garbage collected.

    Args:
        path: the lock file.
        seconds: how long to try.

    Raises:
        BusyError: another process holds it.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(path.parent, holder(path)) from None
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
