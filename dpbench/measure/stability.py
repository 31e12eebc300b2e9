"""Reasons to doubt a series of times: how far it scatters, and what the GPU did meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpbench.machine.nvml import Reading

MAX_SPREAD = 1.1
"""Largest ratio of 90th to 10th percentile in a steady series."""
MIN_CLOCK_SHARE = 0.95
"""Smallest clock of a steady GPU, as a share of the median."""
SUMMARIZED = ("clock_mhz", "temperature_c", "power_w")


def spread(times_ms: Sequence[float]) -> float:
    """Return the ratio of the 90th to the 10th percentile; infinity where a time is not above 0."""
    low, high = np.quantile(times_ms, [0.1, 0.9])
    return float(high / low) if low > 0 else math.inf


def find_flags(times_ms: Sequence[float], readings: Sequence[Reading] = ()) -> Iterator[str]:
    """Yield reasons to doubt a series.

    Args:
        times_ms: the repetitions.
        readings: of the GPU before, during and after; empty on a CPU.
    """
    if len(times_ms) == 1:
        yield "measured once: how far its times scatter is unknown"
    if spread(times_ms) > MAX_SPREAD:
        yield f"scatters: 90th over 10th percentile is {spread(times_ms):.2f}"
    clocks = [reading.clock_mhz for reading in readings[1:-1] if reading.clock_mhz is not None]
    if clocks and min(clocks) < MIN_CLOCK_SHARE * np.median(clocks):
        yield f"the clock dropped to {min(clocks)} MHz from a median of {np.median(clocks):.0f}"
    reasons = sorted({reason for reading in readings for reason in reading.throttles})
    if reasons:
        yield f"throttled: {', '.join(reasons)}"
    foreign = max((reading.foreign for reading in readings), default=0)
    if foreign:
        yield f"{foreign} other processes computed on the GPU"


def summarize_readings(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return what a record keeps of the readings: first and last value, minimum, median and maximum."""
    if not readings:
        return {}
    summary: dict[str, Any] = {"readings": len(readings)}
    for name in SUMMARIZED:
        values = [value for reading in readings if (value := getattr(reading, name)) is not None]
        if values:
            least, middle, most = min(values), float(np.median(values)), max(values)
            summary[name] = {"before": values[0], "least": least, "median": middle, "most": most, "after": values[-1]}
    summary["throttles"] = sorted({reason for reading in readings for reason in reading.throttles})
    summary["foreign_processes"] = max(reading.foreign for reading in readings)
    return summary
