"""Bytes: weights, the most allocated during a stage, and the cache after prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpbench.measure.timing import Stages

CLEAR_PEAK = "5"
"""What Linux wants written to clear_refs to forget the peak of the resident memory."""


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers, shared ones once."""
    held = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    return sum(each.numel() * each.element_size() for each in held.values())


def peaks(stages: Stages, device: torch.device, weights: int) -> dict[str, int]:
    """Run each stage once and return the most memory in use during it.

    On a GPU what torch allocated, weights apart; on a CPU what the whole process held resident, where the system tells.
    """
    if device.type == "cuda":
        return {name: _gpu_peak(call, weights) for name, call in stages.items()}
    if resident_bytes("VmHWM") is None or not _forget_peak():
        return {}
    return {name: _host_peak(call) for name, call in stages.items()}


def _gpu_peak(call: Any, weights: int) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return max(0, torch.cuda.max_memory_allocated() - weights)


def _host_peak(call: Any) -> int:
    _forget_peak()
    call()
    return resident_bytes("VmHWM") or 0


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def resident_bytes(name: str) -> int | None:
    """Return VmRSS or VmHWM of this process, or None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0].split()[1]) if found else None


def kv_bytes(cache: Any) -> tuple[int, ...]:
    """Return the bytes of keys and values of each layer of a DynamicCache."""
    return tuple(_bytes(each.keys) + _bytes(each.values) for each in cache.layers)


def _bytes(values: torch.Tensor) -> int:
    return values.numel() * values.element_size()
