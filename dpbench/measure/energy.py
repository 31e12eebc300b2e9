"""Joules per first token, from the driver's energy counter over a block of at least a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dpbench.machine import nvml

BLOCK_S = 1.0


def idle_watts(handle: Any, seconds: float = BLOCK_S) -> float | None:
    """Return the power drawn while nothing runs, or None where energy is not counted."""
    drawn = _drawn(handle, lambda: time.sleep(seconds))
    return None if drawn is None else drawn[0] / drawn[1]


def per_call(handle: Any, call: Callable[[int], Any], idle_w: float, seconds: float = BLOCK_S) -> dict[str, float]:
    """Return the joules of one call: what it draws above idle, and idle's share meanwhile; nothing where not counted.

    Args:
        handle: NVML's.
        call: given the number of the repetition.
        idle_w: from `idle_watts`.
        seconds: length of the block, at least.
    """
    count = 0

    def block() -> None:
        nonlocal count
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            call(count)
            torch.cuda.synchronize()
            count += 1

    drawn = _drawn(handle, block)
    if drawn is None:
        return {}
    used, took = drawn
    return {"first_token": (used - idle_w * took) / count, "idle": idle_w * took / count}


def _drawn(handle: Any, work: Callable[[], Any]) -> tuple[float, float] | None:
    """Return joules drawn and seconds passed during some work, from one step of the counter to another."""
    torch.cuda.synchronize()
    before = _next_step(handle)
    if before is None:
        return None
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    after = _next_step(handle)
    return None if after is None else (after - before, time.perf_counter() - start)


def _next_step(handle: Any) -> float | None:
    """Wait for the counter, which moves some tens of times a second, to move."""
    first = now = nvml.joules(handle)
    stop = time.perf_counter() + 0.2
    while first is not None and now == first and time.perf_counter() < stop:
        now = nvml.joules(handle)
    return now
