"""A training that is asked to stop: by Ctrl-C or SIGTERM, after its step, or within it where that takes too long."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from dpbench.machine.stopping import TERMINATED

GRACE_S = 3.0
"""Seconds that a step, or a validation, has to end once the training is asked to stop."""


class LateError(BaseException):
    """The step takes too long to be waited for; no Exception, so that nothing takes it for a failure of its own."""


class Interruption:
    """Whether a training is asked to stop, and what it must not be stopped in."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._whole, self._late = 0, False

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Ask to stop, as a signal does; a second time ends the process at once."""
        if self.asked is not None:
            self.leave()
        self.asked = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def leave(self) -> None:
        """End the process as its signal would have.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM.
        """
        if self.asked == signal.SIGTERM:
            sys.exit(TERMINATED)
        raise KeyboardInterrupt

    def ring(self, _number: int, _frame: FrameType | None) -> None:
        """Leave the step that takes too long, unless it is in what must be whole."""
        self._late = True
        if not self._whole:
            raise LateError

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Do what a checkpoint would be wrong in the middle of; a stop that is late waits for its end."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
        if self._late and not self._whole:
            raise LateError


def outlive(_worker: int) -> None:
    """Let a process that reads ahead live on when the training is asked to stop, which ends its readers itself.

    Ctrl-C, `timeout` and batch systems signal all processes at once. A second SIGTERM ends a reader.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let signals ask rather than end; outside the main thread there are none."""
    asked = Interruption()
    if current_thread() is not main_thread():
        yield asked
        return
    handlers: dict[int, Callable[[int, FrameType | None], None]]
    handlers = {signal.SIGINT: asked.ask, signal.SIGTERM: asked.ask, signal.SIGALRM: asked.ring}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
