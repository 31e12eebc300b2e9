"""Stop a training on Ctrl-C or SIGTERM: after the current step, or within it if it takes too long."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread, current_thread, main_thread
from types import FrameType

from dpbench.diffprune.example import first_line
from dpbench.errors import DpbenchError
from dpbench.machine.stopping import TERMINATED

GRACE_S = 3.0
"""Seconds that a step or a validation may still run after a stop is requested."""

PARENT_POLL_S = 0.5
"""Seconds between two looks of a process at whether its parent still runs."""


class LateError(BaseException):
    """The step takes too long to wait for; a BaseException, so that no `except Exception` swallows it."""


class Interruption:
    """Whether a stop was requested, and code that a stop must not break into."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._depth, self._is_late = 0, False

    @property
    def is_requested(self) -> bool:
        """Return True once a signal has requested a stop."""
        return self.signal is not None

    def request_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first one requests a stop, the second one ends the process at once."""
        if self.is_requested:
            self.exit()
        self.signal = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def exit(self) -> None:
        """End the process as its signal would have.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM.
        """
        if self.signal == signal.SIGTERM:
            sys.exit(TERMINATED)
        raise KeyboardInterrupt

    def end_grace(self, _number: int, _frame: FrameType | None) -> None:
        """Handle the alarm: break off the step, unless it is in an uninterrupted block."""
        self._is_late = True
        if not self._depth:
            raise LateError

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Run a block to its end before a late stop: a checkpoint saved in the middle of it would be wrong."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._is_late and not self._depth:
            raise LateError


def end_with_training(_worker: int) -> None:
    """Prepare a process that reads ahead: it outlives the signal that stops the training, but not the training.

    Ctrl-C, `timeout` and batch systems signal all processes at once, and the training then still needs its readers:
    it ends them itself. A second SIGTERM ends a reader. When the training is killed nobody would end them, and torch
    leaves those that wait for a full pipe waiting: so each looks for its parent.
    """
    training = parent_process()
    assert training is not None

    def ignore_once(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_once)
    end_with(training.pid)


def end_with(parent: int | None) -> None:
    """End this process as soon as its parent, a process id, has ended: a parent that is killed ends nobody."""
    Thread(target=_exit_without_parent, args=(parent,), daemon=True).start()


@contextmanager
def explain_lost_reader() -> Iterator[None]:
    """Turn torch's error for a reader that something ended into one sentence; a signal raises it in any line.

    Raises:
        DpbenchError: a reader was ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DpbenchError(
            f"a process that reads images ahead was ended ({first_line(error)}), perhaps because memory ran out; free "
            "memory or lower --param num_workers, then run again, with --resume if the training had begun"
        ) from None


def _exit_without_parent(parent: int | None) -> None:
    """Wait for the end of the parent, then end this process, whatever its other threads wait for."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let signals request a stop instead of ending the process; outside the main thread none arrive."""
    interruption = Interruption()
    if current_thread() is not main_thread():
        yield interruption
        return
    stop = interruption.request_stop
    handlers: dict[int, Callable[[int, FrameType | None], None]]
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGALRM: interruption.end_grace}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield interruption
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
