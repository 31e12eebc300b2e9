"""FLOPs of a stage as its operators run, 2 per multiply-add; tests hold it to a closed form and to fvcore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], Any]) -> int:
    """Return the FLOPs of the matrix products, convolutions and attention that a call runs.

    Element-wise work, norms and softmax are not counted, as is the convention of the papers compared here. Attention
    runs as plain matrix products while counting: torch does not know the FLOPs of each of its fused kernels.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
