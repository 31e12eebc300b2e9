"""Which device a model runs on, and how torch uses the CPU: threads and freed memory. Torch is loaded on first use."""

from __future__ import annotations

import ctypes
import os
import platform
from threading import Thread

from dpbench.errors import ConfigError

MAX_FREED_BYTES = 1 << 30
"""Freed bytes at the top of the heap that the process keeps, at most."""
_MAX_HEAP_TENSOR_BYTES = 32 << 20
"""Largest tensor taken from the heap: glibc's own upper limit. Arithmetic on larger ones outweighs their allocation."""
_MALLOC_OPTIONS = {"M_TRIM_THRESHOLD": (-1, MAX_FREED_BYTES), "M_MMAP_THRESHOLD": (-3, _MAX_HEAP_TENSOR_BYTES)}
"""Option numbers of malloc.h and their values; setting either one turns off glibc's own adjustment of both."""


def pick_device(device: str) -> str:
    """Return "cuda" or "cpu".

    Raises:
        ConfigError: "cuda" was requested and torch sees no GPU.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device: cuda was requested, but torch sees no GPU here; use --device cpu")
    return device


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors, as the next batch needs the same amount.

    By default glibc returns it to the system, which zeroes every page before the next tensor gets it: a fifth of a run
    with a small model. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        for number, value in _MALLOC_OPTIONS.values():
            ctypes.CDLL(None).mallopt(number, value)


def sleep_while_waiting() -> None:
    """Let threads of torch sleep while they wait for each other; has an effect before torch is imported.

    By default OpenMP's threads spin for a while at the end of every product. With a small model there are thousands of
    products a second, and on a busy machine a thread then spins while the one it waits for has no core: a run with
    toy-llava on 2 cores took twice the CPU time beside four other processes. Alone it is not slower asleep. What the
    environment says already is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def fix_num_threads() -> None:
    """Fix the number of threads of matrix products at torch's current number.

    Until somebody sets that number MKL may use fewer threads from one product to the next, and the last bits of a
    product depend on it.
    """
    import torch

    torch.set_num_threads(torch.get_num_threads())


def use_one_thread(others: int) -> None:
    """Limit torch to one thread in the calling thread.

    Args:
        others: number of threads for threads started later, which would otherwise inherit this thread's one.
    """
    import torch

    torch.get_num_threads()  # torch reads its default at the first call in a thread; it must not overwrite ours later
    torch.set_num_threads(1)
    restoring = Thread(target=torch.set_num_threads, args=(others,))
    restoring.start()
    restoring.join()


def is_gpu_lost(error: Exception) -> bool:
    """Return True if CUDA itself failed, as after an index out of range: every later call of the process fails too."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
