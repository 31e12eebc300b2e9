"""The least time a stage can take on a device: its FLOPs at the measured matmul rate, its bytes at the copy rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import torch

from dpbench.backbones.base import Backbone
from dpbench.measure.timing import time_stages

ROUNDS = 10


def rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure matrix products in FLOP/s and copies in bytes/s, counting bytes read and written."""
    side, copied = (8192, 2**31) if device.type == "cuda" else (1024, 2**27)
    with torch.random.fork_rng(devices=[]):
        a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    source = torch.empty(copied, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return {
        "matmul_flops_per_s": 2 * side**3 / _seconds(lambda: torch.mm(a, b), device),
        "copy_bytes_per_s": 2 * copied / _seconds(lambda: target.copy_(source), device),
    }


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    return median(time_stages({"call": call}, device, repeats=ROUNDS, warmups=3)["call"]) / 1000


def stage_bytes(backbone: Backbone, kept_bytes: int, prompt_bytes: int, cache_bytes: int) -> dict[str, int]:
    """Return the fewest bytes each stage must move: every weight read once, every result written once.

    Args:
        backbone: whose weights are read.
        kept_bytes: of the rows a method keeps.
        prompt_bytes: of the embeddings the decoder reads.
        cache_bytes: of keys and values after prefill.
    """
    decoder = _bytes(backbone.decoder.layers) + _bytes(backbone.model.lm_head)
    tower = _bytes(backbone.core) - _bytes(backbone.decoder)
    return {
        "encode": tower,
        "reduce": 2 * kept_bytes,
        "splice": 2 * prompt_bytes,
        "prefill": decoder + prompt_bytes + cache_bytes,
    }


def _bytes(module: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in module.parameters())


def bounds_ms(flops: Mapping[str, int], moved: Mapping[str, int], measured: Mapping[str, float]) -> dict[str, float]:
    """Return per stage the larger of its FLOPs' and its bytes' time."""
    return {
        name: 1000
        * max(
            flops.get(name, 0) / measured["matmul_flops_per_s"],
            moved[name] / measured["copy_bytes_per_s"],
        )
        for name in moved
    }
