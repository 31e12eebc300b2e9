"""Lock files that say who holds them; the operating system frees those of a process that died. No torch."""

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
        folder: what the lock guards.
        holder: who holds it.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(f"{folder}: another dpbench is running there{holder}; wait for it or give another --out")


def take(path: Path, *, seconds: float) -> FileLock:
    """Take a lock and write into its file who has it now; it is free again when released or no longer referred to.

    Args:
        path: the lock file.
        seconds: how long to try.

    Raises:
        BusyError: another process has it.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(path.parent, holder(path)) from None
    with suppress(OSError):  # for people to read only: a full disk must not keep a run from ending well
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}), encoding="utf-8")
    return lock


def holder(path: Path) -> str:
    """Return who holds a lock, as the end of "is running there"; nothing where its file does not say."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {found['pid']} on {found['host']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
