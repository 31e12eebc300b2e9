"""Commands that are stopped by a signal: SIGTERM ends them as Ctrl-C does. No torch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM, as shells count them."""


class Stopped(SystemExit):
    """A command that was stopped and goes on if it is given further flags.

    Args:
        code: its exit code.
        flags: to add to the command.
    """

    def __init__(self, code: int | str | None, flags: tuple[str, ...]) -> None:
        super().__init__(code)
        self.flags = flags


@contextmanager
def terminable() -> Iterator[None]:
    """Leave the block by SystemExit on SIGTERM, so that files are closed and locks are released."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
