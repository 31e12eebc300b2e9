"""Batches that fit into the device's memory, and in which one odd item fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dpbench.errors import explain
from dpbench.machine.device import is_gpu_lost

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

    def map(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Sequence[Result]],
        fail: Callable[[str, Exception | None], Result],
    ) -> list[Result]:
        """Return the result of `work` for each item, in order.

        Where `work` raises, it is asked for each item of the batch alone.

        Args:
            items: any number.
            work: takes a batch.
            fail: makes the result of an item that does not fit into memory, or raises, even alone: from the reason, and
                from what was raised unless memory ran out.

        Raises:
            torch.AcceleratorError: the GPU is lost; nothing can be done on it any more.
        """
        results: list[Result] = []
        while len(results) < len(items):
            batch = items[len(results) :][: self.limit]
            done = self._try(batch, work)
            if isinstance(done, list):
                results += done
            elif len(batch) == 1:
                results.append(fail(OUT_OF_MEMORY, None) if done is None else fail(explain(done), done))
            elif done is None:
                self.limit = len(batch) // 2
            else:
                del done  # its frames hold the batch's tensors
                results += [result for item in batch for result in self.map([item], work, fail)]
        return results

    def _try(
        self, batch: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result] | Exception | None:
        """Return the results of a batch, or what it raised; None if memory ran out."""
        try:
            return list(work(batch))
        except torch.OutOfMemoryError:
            pass  # freed below: the exception's frames hold the batch's tensors
        except Exception as error:
            if is_gpu_lost(error):
                raise
            return error
        self.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
