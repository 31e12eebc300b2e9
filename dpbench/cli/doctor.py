"""Examine this machine: GPU, kernels, memory, disk, and which weights, data and packages are missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from dpbench import __version__, backbones, tasks
from dpbench.cli.messages import format_columns
from dpbench.errors import MissingError
from dpbench.machine.environment import environment, versions
from dpbench.tasks.data.root import data_files

GIB = 2**30
Rows = list[tuple[str, str]]

DISTRIBUTION = "diffprune-bench"
"""The name of dpbench on package indexes; its metadata lists the packages that dpbench requires."""

DEVELOPMENT = ("test", "dev")
"""Extras for working on dpbench itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one item; `remedy` says how to get what is missing, and is empty if nothing is."""

    name: str
    text: str
    remedy: str = ""


def report(data_root: Path | None, app: typer.Typer) -> str:
    """Return the report as text, section by section.

    Args:
        data_root: a folder with the benchmarks' data, or None for the hub's cache.
        app: the commands whose packages are looked for.
    """
    sections: dict[str, Callable[[], Rows]] = {
        "Machine": _machine,
        "Torch": _torch,
        "GPU": _gpu,
        "Weights": lambda: _format_findings(weights()),
        "Benchmarks": lambda: _format_findings(data(data_root)),
        "Packages": lambda: _format_findings(packages()),
        "Optional": lambda: _format_findings(optional_packages()),
        "Commands": lambda: _format_findings(commands(app)),
    }
    width = shutil.get_terminal_size().columns
    return "\n\n".join(f"{title}\n{format_columns(rows(), width)}" for title, rows in sections.items())


def _format_findings(findings: Iterable[Finding]) -> Rows:
    return [(finding.name, f"missing: {finding.remedy}" if finding.remedy else finding.text) for finding in findings]


def _machine() -> Rows:
    from dpbench.measure.memory import resident_bytes

    free = shutil.disk_usage(Path.cwd()).free
    machine = environment("cpu")
    memory = _memory()
    return [
        ("dpbench", f"{__version__}, Python {platform.python_version()}, {machine['platform']}"),
        ("processor", f"{machine['cpu']}, {machine['cpu_cores']} cores, torch uses {machine['cpu_threads']}"),
        ("load", describe_load(machine["cpu_cores"] or 1)),
        ("memory", f"{memory / GIB:.1f} GiB" if memory else "unknown"),
        ("this process", f"{(resident_bytes('VmRSS') or 0) / GIB:.1f} GiB"),
        ("free disk here", f"{free / GIB:.1f} GiB"),
    ]


def describe_load(cores: int) -> str:
    """Return how many processes wanted a core over the last minute, and a warning if more than half the cores did."""
    try:
        load = os.getloadavg()[0]
    except OSError:
        return "unknown"
    busy = load > cores / 2
    return f"{load:.1f} of {cores} cores wanted" + ("; busy: runs take longer and times mislead" if busy else "")


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _torch() -> Rows:
    import torch

    installed = versions()
    kernels = ", ".join(_kernels()) or "math"
    rows = [(name, installed.get(name, "missing")) for name in ("torch", "transformers", "lmms-eval")]
    return [*rows, ("CUDA", torch.version.cuda or "not in this build of torch"), ("SDPA kernels", kernels)]


def _kernels() -> Iterator[str]:
    """Yield the attention kernels that torch can choose from on this machine."""
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
    yield from (name for name, is_enabled in enabled.items() if is_enabled)


def _gpu() -> Rows:
    import torch

    if not torch.cuda.is_available():
        return [("none", "torch sees no GPU here; everything runs and is timed on the CPU")]
    from dpbench.machine import nvml

    gpu: dict[str, Any] = environment("cuda")
    free, total = torch.cuda.mem_get_info()
    with nvml.open_gpu() as handle:
        reading = nvml.read(handle)
    clock = f"{reading.clock_mhz} of {gpu['gpu_clock_max_mhz']} MHz"
    return [
        ("name", f"{gpu['gpu']}, driver {gpu['driver']}, CUDA {gpu['cuda']}"),
        ("memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"),
        ("clock", f"{clock}, {reading.temperature_c} degrees, {reading.power_w} W"),
        ("throttled by", ", ".join(reading.throttles) or "nothing"),
        ("other processes", f"{reading.foreign}" + ("; in use: times mislead" if reading.foreign else "")),
    ]


def weights() -> Iterator[Finding]:
    """List each backbone's weights and how to get missing ones."""
    for name, family in backbones.FAMILIES.items():
        try:
            backbones.locate(name)
        except MissingError as error:
            yield Finding(name, "", str(error).rsplit("; ", 1)[-1].removeprefix("fetch them with: "))
        else:
            yield Finding(name, f"found ({family.weights})")


def data(data_root: Path | None) -> Iterator[Finding]:
    """List each benchmark's files and how to get missing ones."""
    for name in tasks.TASKS:
        try:
            paths = data_files(name, data_root)
        except MissingError:
            yield Finding(name, "", f"dpbench data pull {name}")
        else:
            size = sum(path.stat().st_size for path in paths) / 2**20
            yield Finding(name, f"found ({len(paths)} files, {size:.1f} MiB)")


def packages() -> Iterator[Finding]:
    """Yield each package that dpbench requires, with its version or how to install it."""
    requirements = _requirements()
    if requirements is None:
        yield Finding(DISTRIBUTION, "", "pip install -e . in its checkout")
    for requirement, extra in requirements or ():
        if not extra:
            yield _look_for(requirement, f"pip install '{requirement}'")


def optional_packages() -> Iterator[Finding]:
    """Yield each package of an extra that users install, with its version or how to install it."""
    for requirement, extra in _requirements() or ():
        if extra and extra not in DEVELOPMENT:
            yield _look_for(requirement, f"pip install '{DISTRIBUTION}[{extra}]'")


def commands(app: typer.Typer) -> Iterator[Finding]:
    """Yield each command, with the packages that its code may import and that are not installed."""
    from dpbench.cli.command_needs import packages_by_command

    for name, needed in packages_by_command(app).items():
        missing = sorted(package for package in needed if find_spec(package) is None)
        yield Finding(name, "ready", f"{', '.join(missing)}; see Packages above" if missing else "")


def _requirements() -> list[tuple[str, str]] | None:
    """Return what the installed dpbench requires and the extra it belongs to, if any; None if it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    parts = [line.partition(";") for line in lines]
    return [(needed.strip(), "".join(re.findall(r"extra == ['\"]([^'\"]+)", marker))) for needed, _, marker in parts]


def _look_for(requirement: str, remedy: str) -> Finding:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "", remedy)
