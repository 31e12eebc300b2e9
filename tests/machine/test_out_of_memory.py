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


def unused(reason: str, error: Exception | None) -> int:
    raise AssertionError(reason)


def describe(reason: str, error: Exception | None) -> object:
    return f"{reason} {error if error is None else type(error).__name__}"


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered() -> None:
    freed: list[None] = []
    sizes: list[int] = []
    limiter = BatchLimiter(lambda: freed.append(None))
    assert limiter.map(range(10), worker(3, sizes), unused) == [10 * each for each in range(10)]
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert len(freed) == 2
    sizes.clear()
    limiter.map(range(4), worker(3, sizes), unused)
    assert sizes == [2, 2]


def test_what_does_not_fit_alone_fails_and_the_rest_goes_on() -> None:
    results = BatchLimiter(lambda: None).map(range(4), worker(4, [], frozenset({1})), describe)
    assert results == [0, "out of memory at batch 1 None", 20, 30]


def test_what_raises_in_a_batch_fails_alone_with_its_reason_and_batches_stay_as_large() -> None:
    sizes: list[int] = []

    def work(part: Sequence[int]) -> list[object]:
        sizes.append(len(part))
        if 2 in part:
            raise KeyError("odd")
        return [10 * each for each in part]

    limiter = BatchLimiter(lambda: None)
    assert limiter.map(range(4), work, describe) == [0, 10, "KeyError: 'odd' KeyError", 30]
    assert limiter.map(range(4, 8), work, describe) == [40, 50, 60, 70]
    assert sizes == [4, 1, 1, 1, 1, 4]


def test_an_item_that_raises_only_in_company_and_one_too_large_alone_are_told_apart() -> None:
    def work(part: Sequence[int]) -> list[object]:
        if len(part) > 1:
            raise ValueError("too many")
        if part[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [part[0]]

    assert BatchLimiter(lambda: None).map(range(3), work, describe) == [0, "out of memory at batch 1 None", 2]


def test_a_lost_gpu_ends_everything() -> None:
    def lost(_: Sequence[int]) -> list[int]:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(torch.AcceleratorError):
        BatchLimiter(lambda: None).map([1, 2], lost, unused)
