"""What this machine can do: GPU, kernels, memory, disk, weights and data found, and what each command still lacks."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dpbench import __version__, backbones, tasks
from dpbench.errors import MissingError
from dpbench.machine.environment import environment, versions
from dpbench.tasks.data.root import data_files

GIB = 2**30
Rows = list[tuple[str, str]]

PARTS = {
    "run": ("lmms_eval", "datasets", "pydantic"),
    "train": ("pydantic", "datasets", "tensorboardX"),
    "profile": ("pydantic",),
    "profile --flops-only": ("pydantic",),
    "report": ("pandas", "tabulate"),
    "report --format html": ("jinja2", "plotly"),
    "visualize": ("matplotlib",),
    "data pull": ("huggingface_hub",),
    "check": ("pydantic",),
}
"""What each command imports besides torch and transformers."""

EXTRAS = {
    "bitsandbytes": "--quantize",
    "decord": "SEED-Bench's videos",
    "playwright": "the tests of the HTML page",
}
"""Packages that nothing needs until it is asked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing of the machine; `lack` is empty where all is well."""

    name: str
    text: str
    lack: str = ""


def report(data_root: Path | None) -> str:
    """Return everything as text, what is missing at the end."""
    sections: dict[str, Callable[[], Rows]] = {
        "Machine": _machine,
        "Torch": _torch,
        "GPU": _gpu,
        "Weights": lambda: [_line(each) for each in weights()],
        "Benchmarks": lambda: [_line(each) for each in data(data_root)],
        "Commands": lambda: [_line(each) for each in commands()],
        "Optional": lambda: [(name, f"{_there(name)} ({use})") for name, use in EXTRAS.items()],
    }
    return "\n\n".join(f"{title}\n{tabulate(rows(), tablefmt='plain')}" for title, rows in sections.items())


def _line(finding: Finding) -> tuple[str, str]:
    return finding.name, finding.text if not finding.lack else f"missing: {finding.lack}"


def _machine() -> Rows:
    from dpbench.measure.memory import resident_bytes

    free = shutil.disk_usage(Path.cwd()).free
    found = environment("cpu")
    memory = _memory()
    return [
        ("dpbench", f"{__version__}, Python {platform.python_version()}, {found['platform']}"),
        ("processor", f"{found['cpu']}, {found['cpu_cores']} cores, torch uses {found['cpu_threads']}"),
        ("memory", f"{memory / GIB:.1f} GiB" if memory else "not told by the system"),
        ("this process", f"{(resident_bytes('VmRSS') or 0) / GIB:.1f} GiB"),
        ("free disk here", f"{free / GIB:.1f} GiB"),
    ]


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _torch() -> Rows:
    import torch

    found = versions()
    kernels = ", ".join(_kernels()) or "math"
    rows = [(name, found.get(name, "missing")) for name in ("torch", "transformers", "lmms-eval")]
    return [*rows, ("CUDA", torch.version.cuda or "this torch was built without"), ("SDPA kernels", kernels)]


def _kernels() -> Iterator[str]:
    """Name the attention kernels torch may choose from on this machine."""
    import torch
    from torch.backends import cuda

    if not torch.cuda.is_available():
        yield "flash (CPU)"
        yield "math"
        return
    enabled = {
        "flash": cuda.flash_sdp_enabled() and cuda.is_flash_attention_available(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        "cuDNN": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    yield from (name for name, there in enabled.items() if there)


def _gpu() -> Rows:
    import torch

    if not torch.cuda.is_available():
        return [("none", "torch sees no GPU here; everything runs on the CPU, times are the CPU's")]
    from dpbench.machine import nvml

    found: dict[str, Any] = environment("cuda")
    free, total = torch.cuda.mem_get_info()
    with nvml.opened() as handle:
        now = nvml.read(handle)
    return [
        ("name", f"{found['gpu']}, driver {found['driver']}, CUDA {found['cuda']}"),
        ("memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"),
        ("clock", f"{now.clock_mhz} of {found['gpu_clock_max_mhz']} MHz, {now.temperature_c} degrees, {now.power_w} W"),
        ("held down by", ", ".join(now.throttles) or "nothing"),
        ("other processes", str(now.foreign)),
    ]


def weights() -> Iterator[Finding]:
    """Say of every backbone where its weights are, or how to get them."""
    for name, family in backbones.FAMILIES.items():
        try:
            backbones.locate(name)
        except MissingError as error:
            yield Finding(name, "", str(error).rsplit("; ", 1)[-1])
        else:
            yield Finding(name, f"found ({family.weights})")


def data(data_root: Path | None) -> Iterator[Finding]:
    """Say of every benchmark whether its files are there, or how to get them."""
    for name in tasks.TASKS:
        try:
            found = data_files(name, data_root)
        except MissingError:
            yield Finding(name, "", f"fetch it with `dpbench data pull {name}`")
        else:
            yield Finding(
                name, f"found ({len(found)} files, {sum(each.stat().st_size for each in found) / 2**20:.1f} MiB)"
            )


def commands() -> Iterator[Finding]:
    """Say of every command which packages it lacks."""
    for name, needed in PARTS.items():
        absent = [each for each in needed if find_spec(each) is None]
        yield Finding(f"dpbench {name}", "ready", f"pip install {' '.join(absent)}" if absent else "")


def _there(name: str) -> str:
    return "installed" if find_spec(name) is not None else "not installed"
