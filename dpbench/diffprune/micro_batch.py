"""The number of images that run at once: halved each time memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from rich.console import Console

from dpbench.diffprune.resume import Progress
from dpbench.errors import DpbenchError

Result = TypeVar("Result")


def run_within_memory(work: Callable[[], Result], progress: Progress, console: Console) -> Result:
    """Return what `work` returns; each time memory runs out, halve the micro-batch and start it again.

    Args:
        work: reads `progress.micro_batch`, and can be started again.
        progress: of the training; it keeps the smaller micro-batch.
        console: reports a smaller micro-batch.

    Raises:
        DpbenchError: memory does not hold one image.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # outside the except block: until it ends, the error's traceback holds the tensors that filled the memory
        _halve_micro_batch(progress, console)


def _halve_micro_batch(progress: Progress, console: Console) -> None:
    if progress.micro_batch == 1:
        raise DpbenchError(
            "the GPU's memory does not hold one image; add --param gradient_checkpointing=true, choose a smaller "
            "backbone or free memory"
        )
    progress.micro_batch //= 2
    console.print(f"out of memory; continuing with {progress.micro_batch} images at once")
    torch.cuda.empty_cache()
