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
"""NVML's clock event reasons, by bit, that lower the clock under load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The state of the GPU at one moment; None where the driver reports no value.

    Attributes:
        clock_mhz: of the multiprocessors.
        temperature_c: of the chip.
        power_w: power draw.
        throttles: reasons why the clock is lowered, if it is.
        foreign: number of other processes that compute on it.
    """

    clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttles: tuple[str, ...]
    foreign: int


@contextmanager
def open_gpu() -> Iterator[Any]:
    """Open NVML and yield the handle of torch's current GPU."""
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
    """Read the GPU's state; takes well under a millisecond."""
    import pynvml

    reasons = _query(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    power = _query(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Reading(
        clock_mhz=_query(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        temperature_c=_query(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        throttles=tuple(name for bit, name in THROTTLES.items() if reasons & bit),
        foreign=max(0, len(_query(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()) - 1),
    )


def joules(handle: Any) -> float | None:
    """Return the energy used since the driver was loaded, or None if the GPU does not count it."""
    import pynvml

    millijoules = _query(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if millijoules is None else millijoules / 1000


def _query(call: Any, *args: Any) -> Any:
    """Call the driver; return None if this GPU does not support the query."""
    import pynvml

    try:
        return call(*args)
    except pynvml.NVMLError:
        return None
