"""A call recorded as a CUDA graph and replayed: one launch in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dpbench.errors import UnsupportedError

WARM_UP = 3


@dataclass(slots=True)
class Graphed:
    """A call with tensors for arguments, recorded once per shape of them.

    The next call of the same shapes overwrites what this one returned.
    """

    call: Callable[..., Any]
    recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]] = field(
        default_factory=dict
    )

    def knows(self, *inputs: Tensor) -> bool:
        """Return True if a call with inputs of these shapes is recorded."""
        return tuple(tensor.shape for tensor in inputs) in self.recorded

    def __call__(self, *inputs: Tensor) -> Any:
        """Copy the inputs to where the graph reads them, and replay it.

        Raises:
            UnsupportedError: the call does something that cannot be recorded.
        """
        shape = tuple(tensor.shape for tensor in inputs)
        if shape not in self.recorded:
            try:
                self.recorded[shape] = _record(self.call, tuple(tensor.clone() for tensor in inputs))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UnsupportedError(f"this work waits for the host and cannot be a CUDA graph: {reason}") from error
        graph, held, output = self.recorded[shape]
        for destination, source in zip(held, inputs, strict=True):
            destination.copy_(source)
        graph.replay()
        return output


def _record(call: Callable[..., Any], held: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(*held)
    return graph, held, output
