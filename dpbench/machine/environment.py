"""Describe the machine of a measurement: processor, GPU, driver, clocks, software. No host or user names."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from dpbench import __version__

SOFTWARE = ("torch", "transformers", "lmms-eval")


def versions() -> dict[str, str]:
    """Return the versions of the software that can change a result, without packages that are not installed."""
    from importlib.metadata import PackageNotFoundError

    installed = {"dpbench": __version__, "python": platform.python_version()}
    for name in SOFTWARE:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def environment(device: str) -> dict[str, Any]:
    """Return what can change a timing on this machine.

    Args:
        device: "cpu" or "cuda", where the model runs.
    """
    import torch

    machine: dict[str, Any] = {
        "device": device,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
    }
    return machine | (_gpu() if device.startswith("cuda") else {})


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _gpu() -> dict[str, Any]:
    import pynvml
    import torch

    from dpbench.machine import nvml

    with nvml.open_gpu() as handle:
        return {
            "gpu": pynvml.nvmlDeviceGetName(handle),
            "gpu_memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
            "gpu_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "gpu_clock_max_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "cuda": torch.version.cuda,
        }
