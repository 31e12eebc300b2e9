"""Samples that take too long are given up, one by one, and the run goes on.

A timer of the operating system interrupts Python, in the main thread of a process and between two of its instructions.
So a method that loops, or a download that stalls, is left; a single kernel that never returns is not.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any, TypeVar

from torch import nn

from dpbench.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


class TooSlowError(BaseException):
    """The time for a batch is over; no Exception, so that no method's own handlers take it for one of theirs."""


class Patience:
    """Works through items, each within a time.

    Args:
        seconds: for each item; None waits for ever.
        model: loses the hooks of work that was given up.

    Raises:
        ConfigError: this system, or thread, has no such timer.
    """

    def __init__(self, seconds: float | None, model: nn.Module) -> None:
        self.seconds, self.model = seconds, model
        if seconds is not None and not (hasattr(signal, "setitimer") and current_thread() is main_thread()):
            raise ConfigError("--sample-timeout: needs the main thread of a process on Linux or macOS; leave it out")

    @property
    def reason(self) -> str:
        """Return why an item that was given up has no result."""
        return f"timed out after {self.seconds:g} s"

    def map(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result | None]:
        """Return what `work` makes of the items, in order; None for those given up.

        All are worked on at once; where that takes longer than their time together, each alone.
        """
        if self.seconds is None or not items:
            return list(work(items))
        hooks = _hooks(self.model)
        try:
            with _limit(self.seconds * len(items)):
                return list(work(items))
        except TooSlowError:
            for registered, known in hooks:
                for key in set(registered) - known:  # the timer may have rung while they were being removed
                    del registered[key]
        if len(items) == 1:
            return [None]
        return [result for item in items for result in self.map([item], work)]


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _hooks(model: nn.Module) -> list[tuple[dict[int, Any], set[int]]]:
    """Return the hooks of all modules, and which there are now."""
    registered = [hooks for each in model.modules() for hooks in (each._forward_pre_hooks, each._forward_hooks)]
    return [(each, set(each)) for each in registered]
