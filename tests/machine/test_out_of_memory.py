"""Out of memory: the batch is halved, the smaller size remembered, and what does not fit alone is given up."""

from collections.abc import Callable, Sequence

import pytest
import torch

from dpbench.machine.out_of_memory import BatchLimiter


def worker(most: int, sizes: list[int], hopeless: frozenset[int] = frozenset()) -> Callable[[Sequence[int]], list[int]]:
    def work(part: Sequence[int]) -> list[int]:
        sizes.append(len(part))
        if len(part) > most or hopeless & set(part):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * each for each in part]

    return work


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered() -> None:
    freed: list[None] = []
    sizes: list[int] = []
    limiter = BatchLimiter(lambda: freed.append(None))
    assert limiter.map(range(10), worker(3, sizes)) == [10 * each for each in range(10)]
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert len(freed) == 2
    sizes.clear()
    limiter.map(range(4), worker(3, sizes))
    assert sizes == [2, 2]


def test_what_does_not_fit_alone_is_none_and_the_rest_goes_on() -> None:
    assert BatchLimiter(lambda: None).map(range(4), worker(4, [], frozenset({1}))) == [0, None, 20, 30]


def test_other_errors_are_not_swallowed() -> None:
    def broken(_: Sequence[int]) -> list[int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        BatchLimiter(lambda: None).map([1], broken)
