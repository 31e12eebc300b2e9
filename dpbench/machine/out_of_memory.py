"""Batches that fit into the device's memory: halve them after an out-of-memory error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

OUT_OF_MEMORY = "out of memory at batch 1"


class BatchLimiter:
    """Works through items in batches; after an out-of-memory error, batches are half as large for good.

    Args:
        free: frees memory before the next try.
    """

    def __init__(self, free: Callable[[], None]) -> None:
        self.free = free
        self.limit: int | None = None

    def map(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result | None]:
        """Return the result of `work` for each item, in order; None for an item that does not fit even alone."""
        results: list[Result | None] = []
        while len(results) < len(items):
            batch = items[len(results) :][: self.limit]
            batch_results = self._try(batch, work)
            if batch_results is not None:
                results += batch_results
            elif len(batch) == 1:
                results.append(None)
            else:
                self.limit = len(batch) // 2
        return results

    def _try(self, batch: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result] | None:
        try:
            return list(work(batch))
        except torch.OutOfMemoryError:
            pass  # freed below: the exception's frames hold the batch's tensors
        self.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
