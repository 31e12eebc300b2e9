"""Stage times of one forward: CUDA events on a GPU, `perf_counter` on a CPU. Nothing waits inside a timed region."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

Stages = dict[str, Callable[[], Any]]


class Marks:
    """Marks along one repetition; on a GPU they are events, read only after the last one has passed."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Set the next mark."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def gaps_ms(self) -> list[float]:
        """Return the milliseconds between neighbouring marks."""
        if self.on_gpu:
            self.marks[-1].synchronize()
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return [1000 * (b - a) for a, b in zip(self.marks, self.marks[1:], strict=False)]


def time_stages(stages: Stages, device: torch.device, *, repeats: int, warmups: int) -> dict[str, tuple[float, ...]]:
    """Run stages in order, again and again, and return their times and the total's.

    Args:
        stages: name to a call without arguments; a later stage may read what an earlier one left.
        device: where the work runs.
        repeats: repetitions kept.
        warmups: repetitions run before and not kept.

    Returns:
        Milliseconds per stage and for "total", one value per repetition.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for repetition in range(warmups + repeats):
        marks = Marks(device)
        marks.mark()
        for call in stages.values():
            call()
            marks.mark()
        if repetition >= warmups:
            gaps = marks.gaps_ms()
            for name, gap in zip(stages, gaps, strict=True):
                times[name].append(gap)
            times["total"].append(sum(gaps))
    return {name: tuple(values) for name, values in times.items()}
