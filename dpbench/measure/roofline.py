"""The minimum time of a stage on a device: its FLOPs at the measured matmul rate, its bytes at the copy rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import torch

from dpbench.backbones.base import Backbone
from dpbench.measure.timing import time_stages

ROUNDS = 10


def measure_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure matrix products in FLOP/s and copies in bytes/s, counting bytes read and written."""
    side, num_bytes = (8192, 2**31) if device.type == "cuda" else (1024, 2**27)
    with torch.random.fork_rng(devices=[]):
        a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return {
        "matmul_flops_per_s": 2 * side**3 / _median_seconds(lambda: torch.mm(a, b), device),
        "copy_bytes_per_s": 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device),
    }


def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    return median(time_stages({"call": call}, device, repeats=ROUNDS, warmups=3)["call"]) / 1000


def stage_bytes(backbone: Backbone, kept_bytes: int, prompt_bytes: int, cache_bytes: int) -> dict[str, int]:
    """Return the minimum bytes each stage moves: every weight is read once, every result is written once.

    Args:
        backbone: the model whose weights are read.
        kept_bytes: of the visual tokens a method keeps.
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
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def bounds_ms(
    stages_flops: Mapping[str, int], stages_bytes: Mapping[str, int], rates: Mapping[str, float]
) -> dict[str, float]:
    """Return for each stage the time its FLOPs or its bytes need, whichever is longer."""
    return {
        stage: 1000
        * max(stages_flops.get(stage, 0) / rates["matmul_flops_per_s"], num_bytes / rates["copy_bytes_per_s"])
        for stage, num_bytes in stages_bytes.items()
    }
