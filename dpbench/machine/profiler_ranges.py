"""Named ranges of work inside a stage, for a profiler that cannot call them by themselves (as NVTX ranges are).

The engine marks what a method adds inside tower and decoder: `signals` and `rank`. With nobody listening a range costs
a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Listener(Protocol):
    """Whoever wants to know when ranges begin and end."""

    def range(self, name: str) -> AbstractContextManager[None]:
        """Return what is entered at the beginning and left at the end."""


_listeners: list[Listener] = []


def marked(name: str) -> AbstractContextManager[None]:
    """Return the context to run a named range in."""
    return _listeners[-1].range(name) if _listeners else nullcontext()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of every range inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
