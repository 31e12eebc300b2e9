"""How many items fit into the device's memory at once, found out by running out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

NO_ROOM = "out of memory at batch 1"


class Room:
    """Works through items in batches; where one does not fit, it and all later ones are half as large.

    Args:
        free: gives memory back before the next try.
    """

    def __init__(self, free: Callable[[], None]) -> None:
        self.free = free
        self.most: int | None = None

    def map(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result | None]:
        """Return what `work` makes of the items, in order; None where one does not even fit alone."""
        results: list[Result | None] = []
        while len(results) < len(items):
            part = items[len(results) :][: self.most]
            done = self._try(part, work)
            if done is not None:
                results += done
            elif len(part) == 1:
                results.append(None)
            else:
                self.most = len(part) // 2
        return results

    def _try(self, part: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result] | None:
        try:
            return list(work(part))
        except torch.OutOfMemoryError:
            pass  # freed below: the exception's frames hold the batch's tensors
        self.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
