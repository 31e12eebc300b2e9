"""In a run on a CPU, the memory of freed tensors stays with the process: the next batch's are as large.

By default glibc soon gives it back to the system, which zeroes it page by page for the next tensor: for a small model,
a fifth of a run.
"""

from __future__ import annotations

import ctypes
import platform

KEPT = 1 << 30
"""Bytes of freed memory at the end of a heap that stay with the process, at most."""
_LARGEST = 32 << 20
"""Bytes of a tensor that is still taken from there: the most glibc goes to by itself. The arithmetic on larger ones
takes long enough."""
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, KEPT), "M_MMAP_THRESHOLD": (-3, _LARGEST)}
"""The numbers of malloc.h, and what they are set to; setting one ends glibc's own adjusting of both."""


def keep_freed() -> None:
    """Have glibc's malloc keep freed memory; does nothing with another C library."""
    if platform.libc_ver()[0] == "glibc":
        for number, value in _SETTINGS.values():
            ctypes.CDLL(None).mallopt(number, value)
