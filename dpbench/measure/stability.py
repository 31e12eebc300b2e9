"""Whether a series of times can be trusted: how far it scatters, and what the GPU did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpbench.machine.nvml import Reading

SPREAD = 1.1
"""The largest 90th over 10th percentile of a steady series."""
CLOCK_DROP = 0.95
"""The smallest clock, as a share of the median, of a steady GPU."""


def spread(times_ms: Sequence[float]) -> float:
    """Return the 90th over the 10th percentile."""
    low, high = np.quantile(times_ms, [0.1, 0.9])
    return float(high / low)


def flags(times_ms: Sequence[float], readings: Sequence[Reading] = ()) -> Iterator[str]:
    """Yield reasons to doubt a series.

    Args:
        times_ms: the repetitions.
        readings: the GPU before, during and after; none on a CPU.
    """
    if spread(times_ms) > SPREAD:
        yield f"scatters: 90th over 10th percentile is {spread(times_ms):.2f}"
    clocks = [each.clock_mhz for each in readings[1:-1] if each.clock_mhz is not None]
    if clocks and min(clocks) < CLOCK_DROP * np.median(clocks):
        yield f"the clock dropped to {min(clocks)} MHz from a median of {np.median(clocks):.0f}"
    reasons = sorted({reason for each in readings for reason in each.throttles})
    if reasons:
        yield f"throttled: {', '.join(reasons)}"
    foreign = max((each.foreign for each in readings), default=0)
    if foreign:
        yield f"{foreign} other processes computed on the GPU"


def monitor(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return what a record keeps of the readings: before, after, and least, median and most during."""
    if not readings:
        return {}
    names = ("clock_mhz", "temperature_c", "power_w")
    found: dict[str, Any] = {"readings": len(readings)}
    for name in names:
        values = [value for each in readings if (value := getattr(each, name)) is not None]
        if values:
            least, middle, most = min(values), float(np.median(values)), max(values)
            found[name] = {"before": values[0], "least": least, "median": middle, "most": most, "after": values[-1]}
    found["throttles"] = sorted({reason for each in readings for reason in each.throttles})
    found["foreign_processes"] = max(each.foreign for each in readings)
    return found
