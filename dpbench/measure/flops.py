"""FLOPs of a call, counted while its operators run, 2 per multiply-add, by two counters that share no formula.

Matrix products, convolutions and attention are counted. Element-wise work, norms, softmax, interpolation and
decompositions (QR, SVD) are not, which is the convention of the papers compared here. Causal attention counts all
L * L pairs, masked ones included. `dpbench.measure.flops_formula` computes the same numbers from a configuration; tests
check that all three agree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dpbench.errors import MissingError

Handle = Callable[[Sequence[Any], Sequence[Any]], float]
"""Takes an operator's inputs and outputs and returns its multiply-adds, as fvcore's handles do."""
Count = Callable[[Callable[[], Any]], int]
"""A counter: takes a call and returns the FLOPs it runs."""


def count_flops(call: Callable[[], Any]) -> int:
    """Return the FLOPs that a call runs, by torch's own counter."""
    with counting_flops() as counter:
        call()
    return int(counter.get_total_flops())


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Yield torch's counter, which counts what runs inside the block.

    Attention runs as plain matrix products meanwhile, as torch does not know the FLOPs of all its fused kernels.
    """
    with _unfused_encoder(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def count_flops_by_fvcore(call: Callable[[], Any]) -> int:
    """Return the FLOPs that a call runs, by fvcore's handles; fused attention keeps its kernel and has our handle.

    The handles read each operator when it is dispatched. A trace would not do: it omits whatever its result does not
    need, such as the tower's layers after the select layer, which do run.

    Raises:
        MissingError: fvcore is not installed.
    """
    counter = _FvcoreCounter(fvcore_handles())
    with _unfused_encoder(), counter:
        call()
    return 2 * counter.multiply_adds


def fvcore_handles() -> Mapping[str, Handle]:
    """Return the handle of each counted operator by its schema name: fvcore's, and ours for attention."""
    if find_spec("fvcore") is None:
        raise MissingError("counting FLOPs by fvcore needs fvcore, which is not installed; run: pip install fvcore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import jit_handles
    return {
        "aten::linear": jit_handles.linear_flop_jit,
        "aten::addmm": jit_handles.addmm_flop_jit,
        "aten::mm": jit_handles.matmul_flop_jit,
        "aten::bmm": jit_handles.bmm_flop_jit,
        "aten::baddbmm": lambda inputs, outputs: jit_handles.bmm_flop_jit(inputs[1:3], outputs),
        "aten::convolution": lambda inputs, outputs: jit_handles.conv_flop_count(
            *map(jit_handles.get_shape, (*inputs[:2], outputs[0]))
        ),
        "aten::scaled_dot_product_attention": attention_multiply_adds,
    }


def attention_multiply_adds(inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
    """Return the multiply-adds of `softmax(q k) v`, all (..., H, L, d); grouped keys count once per query head."""
    *batch, queries, width = inputs[0].type().sizes()
    *_, keys, value_width = inputs[2].type().sizes()
    return int(math.prod(batch) * queries * keys * (width + value_width))


@dataclass(frozen=True, slots=True)
class _Value:
    """An operator's input or output as fvcore's handles expect it, in place of a value of a traced graph."""

    value: Any

    def isCompleteTensor(self) -> bool:
        return isinstance(self.value, Tensor)

    def type(self) -> _Value:
        return self

    def sizes(self) -> list[int]:
        return list(self.value.shape)


class _FvcoreCounter(TorchDispatchMode):
    """Adds up the handles' counts; an operator without a handle is decomposed first if torch can decompose it."""

    def __init__(self, handles: Mapping[str, Handle]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handles = handles
        self.multiply_adds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handle = self.handles.get(_operator(func))
        if handle is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        outcome = func(*args, **kwargs)
        outputs = outcome if isinstance(outcome, tuple) else (outcome,)
        self.multiply_adds += int(handle([*map(_Value, args)], [*map(_Value, outputs)]))
        return outcome


def _operator(func: Any) -> str:
    """Return an operator's schema name, the same one for all attention kernels."""
    name: str = func._schema.name
    return "aten::scaled_dot_product_attention" if name.startswith("aten::_scaled_dot_product") else name


@contextmanager
def _unfused_encoder() -> Iterator[None]:
    """Disable the inference kernel of `nn.TransformerEncoder`, a single operator that no counter can look into."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
