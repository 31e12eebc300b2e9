"""What a shell completes: names of methods, backbones, tasks and manifests. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from dpbench import backbones as families
from dpbench import registry
from dpbench import tasks as benchmarks
from dpbench.manifest import reading


def methods(incomplete: str) -> list[str]:
    """Return the methods that the last of several names may become, behind those before it."""
    return _complete(incomplete, registry.methods())


def backbones(incomplete: str) -> list[str]:
    """Return the backbones that a name may become."""
    return _complete(incomplete, families.FAMILIES)


def tasks(incomplete: str) -> list[str]:
    """Return the benchmarks that the last of several names may become, behind those before it."""
    return _complete(incomplete, benchmarks.ALL)


def manifests(incomplete: str) -> list[str]:
    """Return the shipped manifests that a name may become; the shell completes files by itself."""
    return _complete(incomplete, reading.shipped())


def _complete(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
