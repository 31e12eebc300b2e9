"""Stop commands cleanly: SIGTERM ends them as Ctrl-C does. No torch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM, by the convention of shells."""


class Stopped(SystemExit):
    """Raised when a command was stopped that needs further flags to continue.

    Args:
        code: the exit code.
        flags: to add to the command.
        is_told: print how to continue; False in all processes of a training but one.
    """

    def __init__(self, code: int | str | None, flags: tuple[str, ...], *, is_told: bool = True) -> None:
        super().__init__(code)
        self.flags, self.is_told = flags, is_told


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Leave the block by SystemExit on SIGTERM, so that files are closed and locks are released."""
    if current_thread() is not main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
