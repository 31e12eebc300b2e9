"""Threads of torch on a CPU, and the memory of freed tensors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dpbench.errors import ConfigError
from dpbench.machine import device

GRADIENT = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from dpbench.machine import device
{before}
device.fix_num_threads()
torch.manual_seed(0)
query = torch.randn(4, 4, 200, 32, requires_grad=True)
scaled_dot_product_attention(query, query, query, is_causal=True).square().sum().backward()
print(query.grad.numpy().tobytes().hex())
"""

PAGES_FAULTED = """
import resource, torch
from dpbench.machine.device import keep_freed_memory
keep_freed_memory()
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


OPENMP_SETTINGS = """
import ctypes
from importlib.util import find_spec
from pathlib import Path
from dpbench.machine import device
device.sleep_while_waiting()
ctypes.CDLL(str(next((Path(find_spec("torch").origin).parent / "lib").glob("libgomp*"))))
"""
"""Loads the OpenMP that torch brings, without torch; it prints its settings where OMP_DISPLAY_ENV is set."""


def of_new_thread(first: int | None = None) -> int:
    """Return torch's number of threads in a thread of its own, which has first let itself compute alone."""
    initial = {} if first is None else {"initializer": device.use_one_thread, "initargs": (first,)}
    with ThreadPoolExecutor(1, **initial) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_a_thread_alone_leaves_the_others_as_they_were() -> None:
    before = torch.get_num_threads()
    try:
        assert of_new_thread(3) == 1
        assert of_new_thread() == 3
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_gradients_are_the_same_whoever_set_the_number_of_threads() -> None:
    befores = "", "torch.set_num_threads(1); torch.set_num_threads(2)"
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    found = [
        subprocess.run([sys.executable, "-c", GRADIENT.format(before=before)], env=env, capture_output=True, check=True)
        for before in befores
    ]
    assert found[0].stdout == found[1].stdout


@pytest.mark.skipif(
    not list((Path(torch.__file__).parent / "lib").glob("libgomp*")), reason="torch brings another OpenMP"
)
@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    given: dict[str, str], policy: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env = inherited | given | {"OMP_DISPLAY_ENV": "TRUE"}
    done = subprocess.run([sys.executable, "-c", OPENMP_SETTINGS], env=env, capture_output=True, check=True, text=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_FAULTED], capture_output=True, check=True, text=True)
    touched = 10 * 150 * 1024
    assert int(done.stdout) < touched / 100


def test_a_missing_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        device.pick_device("cuda")
    assert device.pick_device("auto") == "cpu"
