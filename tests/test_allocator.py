"""On a CPU, a batch's tensors take the memory of the batch before: no page is asked of the system again."""

import platform
import subprocess
import sys

import pytest

PAGES_FAULTED = """
import resource, torch
from dpbench import allocator
allocator.keep_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    tensors = [torch.ones(1 << 20) for _ in range(150)]
for _ in range(10):
    work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_FAULTED], capture_output=True, check=True, text=True)
    touched = 10 * 150 * 1024
    assert int(done.stdout) < touched / 100
