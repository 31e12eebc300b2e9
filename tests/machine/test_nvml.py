"""NVML through a fake driver: units, throttle bits, other processes, and what a GPU does not tell."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from dpbench.machine import nvml
from dpbench.measure import energy


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that draws 250 W, whose counter moves whenever it is asked."""
    state = SimpleNamespace(reasons=0, processes=[1], energy_mj=0.0, refuses=set())

    def told(name: str, value: Any) -> None:
        def call(*_args: Any) -> Any:
            if name in state.refuses:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value() if callable(value) else value

        monkeypatch.setattr(pynvml, name, call)

    def counter() -> float:
        state.energy_mj += 1.0
        return state.energy_mj

    told("nvmlDeviceGetCurrentClocksThrottleReasons", lambda: state.reasons)
    told("nvmlDeviceGetPowerUsage", 250_000)
    told("nvmlDeviceGetClockInfo", 1980)
    told("nvmlDeviceGetTemperature", 41)
    told("nvmlDeviceGetComputeRunningProcesses", lambda: state.processes)
    told("nvmlDeviceGetTotalEnergyConsumption", counter)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return state


def test_units_are_watts_and_megahertz(driver: SimpleNamespace) -> None:
    seen = nvml.read("handle")
    assert (seen.power_w, seen.clock_mhz, seen.temperature_c) == (250.0, 1980, 41)
    assert seen.throttles == ()
    assert seen.foreign == 0


def test_idle_is_no_throttling_and_heat_is(driver: SimpleNamespace) -> None:
    driver.reasons = 0x1 | 0x2
    assert nvml.read("handle").throttles == ()
    driver.reasons = 0x1 | 0x4 | 0x40
    assert nvml.read("handle").throttles == ("power cap", "hardware thermal slowdown")


def test_other_processes_are_counted_without_our_own(driver: SimpleNamespace) -> None:
    driver.processes = [1, 2, 3]
    assert nvml.read("handle").foreign == 2
    driver.processes = []
    assert nvml.read("handle").foreign == 0


def test_what_the_driver_refuses_is_absent(driver: SimpleNamespace) -> None:
    driver.refuses = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"}
    assert nvml.read("handle").power_w is None
    assert nvml.joules("handle") is None
    assert energy.idle_watts("handle", 0.0) is None
    assert energy.joules_per_call("handle", lambda turn: None, 10.0, 0.0) == {}


def test_joules_per_call_are_split_into_idle_and_above(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.0, 0.4, 0.8, 1.2, 1.2])
    monkeypatch.setattr(energy, "_wait_for_step", lambda handle: driver.energy_mj / 1000)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(times))

    def call(turn: int) -> None:
        driver.energy_mj += 100_000.0

    found = energy.joules_per_call("handle", call, idle_w=50.0, seconds=1.0)
    assert found == pytest.approx({"idle": 50 * 1.2 / 2, "first_token": (200 - 50 * 1.2) / 2})
