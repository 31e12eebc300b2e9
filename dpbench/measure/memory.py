"""Bytes: weights, peak memory of each stage, and the KV cache after prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpbench.measure.timing import Stages

CLEAR_PEAK = "5"
"""Written to /proc/self/clear_refs, this resets VmHWM, the peak of the resident memory."""


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers, counting shared ones once."""
    unique = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(map(_bytes, unique.values()))


def peak_bytes(stages: Stages, device: torch.device, weights: int) -> dict[str, int]:
    """Run each stage once and return its peak memory.

    On a GPU this is what torch allocated, without the weights. On a CPU it is the resident memory of the whole process;
    the result is empty if the system does not report it.
    """
    if device.type == "cuda":
        return {name: _gpu_peak(call, weights) for name, call in stages.items()}
    if resident_bytes("VmHWM") is None or not _reset_host_peak():
        return {}
    return {name: _host_peak(call) for name, call in stages.items()}


def _gpu_peak(call: Any, weights: int) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return max(0, torch.cuda.max_memory_allocated() - weights)


def _host_peak(call: Any) -> int:
    _reset_host_peak()
    call()
    return resident_bytes("VmHWM") or 0


def _reset_host_peak() -> bool:
    """Reset the peak; return False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")  # a command to the kernel, not a file
    except OSError:
        return False
    return True


def resident_bytes(name: str) -> int | None:
    """Return VmRSS or VmHWM of this process, or None if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    matches = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(matches[0].split()[1]) if matches else None


def kv_bytes(cache: Any) -> tuple[int, ...]:
    """Return the bytes of keys and values of each layer of a DynamicCache."""
    return tuple(_bytes(layer.keys) + _bytes(layer.values) for layer in cache.layers)


def _bytes(values: torch.Tensor) -> int:
    return values.numel() * values.element_size()
