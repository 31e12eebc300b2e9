"""Joules per first token, from the driver's energy counter over a block of at least a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dpbench.machine import nvml

BLOCK_S = 1.0
STEP_TIMEOUT_S = 0.2


def idle_watts(handle: Any, seconds: float = BLOCK_S) -> float | None:
    """Return the power drawn while nothing runs, or None if the driver does not count energy."""
    usage = _measure(handle, lambda: time.sleep(seconds))
    return None if usage is None else usage[0] / usage[1]


def joules_per_call(
    handle: Any, call: Callable[[int], Any], idle_w: float, seconds: float = BLOCK_S
) -> dict[str, float]:
    """Return the energy of one call: joules above idle, and joules an idle GPU draws in the same time.

    Args:
        handle: NVML's.
        call: takes the number of the repetition.
        idle_w: from `idle_watts`.
        seconds: minimum length of the block of calls.

    Returns:
        "first_token" and "idle", or an empty dict if the driver does not count energy.
    """
    count = 0

    def block() -> None:
        nonlocal count
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            call(count)
            torch.cuda.synchronize()
            count += 1

    usage = _measure(handle, block)
    if usage is None:
        return {}
    joules, elapsed_s = usage
    return {"first_token": (joules - idle_w * elapsed_s) / count, "idle": idle_w * elapsed_s / count}


def _measure(handle: Any, work: Callable[[], Any]) -> tuple[float, float] | None:
    """Return the joules and seconds of some work, measured between two steps of the energy counter."""
    torch.cuda.synchronize()
    before = _wait_for_step(handle)
    if before is None:
        return None
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    after = _wait_for_step(handle)
    return None if after is None else (after - before, time.perf_counter() - start)


def _wait_for_step(handle: Any) -> float | None:
    """Wait for the counter to change, which it does some tens of times a second, and return its value."""
    first = now = nvml.joules(handle)
    stop = time.perf_counter() + STEP_TIMEOUT_S
    while first is not None and now == first and time.perf_counter() < stop:
        now = nvml.joules(handle)
    return now
