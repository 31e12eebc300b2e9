"""The GPU as its driver sees it: clocks, temperature, power, throttling, energy, other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that hold the clock down while there is work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the GPU; what the driver does not tell is None.

    Attributes:
        clock_mhz: of the multiprocessors.
        temperature_c: of the chip.
        power_w: drawn.
        throttles: why the clock is held down, if it is.
        foreign: other processes that compute on it.
    """

    clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttles: tuple[str, ...]
    foreign: int


@contextmanager
def opened() -> Iterator[Any]:
    """Open NVML and give the handle of torch's current GPU."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    try:
        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
        if uuid is None:
            yield pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        else:
            yield pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    finally:
        pynvml.nvmlShutdown()


def read(handle: Any) -> Reading:
    """Look at the GPU once; takes well under a millisecond."""
    import pynvml

    reasons = _told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    power = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Reading(
        clock_mhz=_told(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        temperature_c=_told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        throttles=tuple(name for bit, name in THROTTLES.items() if reasons & bit),
        foreign=max(0, len(_told(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()) - 1),
    )


def joules(handle: Any) -> float | None:
    """Return the energy drawn since the driver was loaded, or None where it is not counted."""
    import pynvml

    counted = _told(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if counted is None else counted / 1000


def _told(call: Any, *args: Any) -> Any:
    """Ask the driver; None where this GPU does not tell."""
    import pynvml

    try:
        return call(*args)
    except pynvml.NVMLError:
        return None
