"""Stage times of one repetition: CUDA events on a GPU, `perf_counter` on a CPU. Nothing waits inside a timed region."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Stages = dict[str, Callable[[], Any]]


class Clock(Protocol):
    """Marks in the stream of work, and the time between two of them."""

    def mark(self) -> Any:
        """Return a mark at this point of the work."""

    def wait(self, mark: Any) -> None:
        """Wait until the work reaches a mark."""

    def ms_between(self, start: Any, stop: Any) -> float:
        """Return the milliseconds between two marks that have been reached."""


class HostClock:
    """The host's clock, for work that is complete when its call returns."""

    def mark(self) -> float:
        """Return the time now, in seconds."""
        return time.perf_counter()

    def wait(self, mark: float) -> None:
        """Return at once."""

    def ms_between(self, start: float, stop: float) -> float:
        """Return the difference."""
        return 1000 * (stop - start)


class DeviceClock:
    """CUDA events on the current stream; they are read only after the last one has completed."""

    def mark(self) -> torch.cuda.Event:
        """Return an event recorded after the work launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Wait for an event."""
        mark.synchronize()

    def ms_between(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Return the device's time between two events."""
        return start.elapsed_time(stop)  # type: ignore[no-any-return]


def clock_of(device: torch.device) -> Clock:
    """Return the clock for work on a device."""
    return DeviceClock() if device.type == "cuda" else HostClock()


class Recorder:
    """The named ranges of one repetition. They may nest; ranges of the same name add up."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ranges: list[tuple[str, Any, Any]] = []

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Time what runs inside the block."""
        start = self.clock.mark()
        try:
            yield
        finally:
            self.ranges.append((name, start, self.clock.mark()))

    def ms(self) -> dict[str, float]:
        """Wait for the last mark and return milliseconds by name, in the order the ranges ended."""
        self.clock.wait(self.ranges[-1][2])
        total: dict[str, float] = defaultdict(float)
        for name, start, stop in self.ranges:
            total[name] += self.clock.ms_between(start, stop)
        return dict(total)


def time_stages(stages: Stages, device: torch.device, *, repeats: int, warmups: int) -> dict[str, tuple[float, ...]]:
    """Run stages in order, repeatedly, and return the times of each stage and of all together.

    Args:
        stages: calls without arguments by name; a stage may read what an earlier one stored.
        device: where the work runs.
        repeats: repetitions kept.
        warmups: repetitions run before, whose times are discarded.

    Returns:
        Milliseconds per stage and for "total", one value per repetition.
    """
    times: dict[str, list[float]] = {name: [] for name in (*stages, "total")}
    for repetition in range(warmups + repeats):
        recorder = Recorder(clock_of(device))
        with recorder.range("total"):
            for name, call in stages.items():
                with recorder.range(name):
                    call()
        for name, ms in recorder.ms().items() if repetition >= warmups else ():
            times[name].append(ms)
    return {name: tuple(values) for name, values in times.items()}
