"""The examples of a step: a pure function of (seed, step), so a training resumes from its step number alone.

Step t of batch size B reads positions t*B .. (t+1)*B - 1 of the endless sequence of shuffled epochs.

Shape letters: N examples to train on, B examples of a step.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from dpbench.diffprune.broken import Broken
from dpbench.diffprune.example import BrokenError, Example, Source
from dpbench.diffprune.interruption import end_with_training
from dpbench.errors import ConfigError, ImageError

Indices = NDArray[np.int64]
Check = Callable[[Image], None]
"""Raises ImageError for an image that the backbone cannot read."""


class Split(NamedTuple):
    """Two disjoint sets of indices into a source, each in random order."""

    training: Indices
    validation: Indices


def split(num: int, *, fraction: float, num_validation: int, seed: int) -> Split:
    """Split a source: the last `num_validation` of a seeded permutation validate, a fraction of the rest trains.

    A smaller fraction is a prefix of a larger one. The validation examples are the same for all fractions.

    Raises:
        ConfigError: nothing is left to train on, or the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"--param fraction must be above 0 and at most 1, got {fraction}")
    rest = num - num_validation
    size = round(fraction * rest)
    if num_validation < 0 or size < 1:
        raise ConfigError(
            f"--data: of {num} examples, {num_validation} to validate with and a fraction of {fraction} leave "
            f"{max(size, 0)} to train on; give more data, fewer to validate with or a larger fraction"
        )
    shuffled = np.random.default_rng([seed, 0, 1]).permutation(num)  # three numbers: `order` uses all the pairs
    return Split(shuffled[:size], shuffled[rest:])


def order(subset: Indices, *, seed: int, epoch: int) -> Indices:
    """Return the examples of an epoch in its order, (N,): `subset` permuted by default_rng([seed, epoch])."""
    return subset[_shuffle(len(subset), seed, epoch)]


@lru_cache(maxsize=2)
def _shuffle(num: int, seed: int, epoch: int) -> Indices:
    """Return a permutation of range(num); cached, because every step of an epoch needs it and a large one is slow."""
    permutation: Indices = np.random.default_rng([seed, epoch]).permutation(num)
    permutation.setflags(write=False)
    return permutation


def step_indices(subset: Indices, *, seed: int, step: int, batch_size: int) -> Indices:
    """Return the examples of a step, (B,): its part of the endless sequence of epochs, possibly of two or more."""
    num = len(subset)
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num
    parts = [_shuffle(num, seed, int(epoch))[positions[epochs == epoch] % num] for epoch in np.unique(epochs)]
    indices: Indices = subset[np.concatenate(parts)]
    return indices


def training_batches(
    source: Source,
    subset: Indices,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    num_workers: int,
    broken: Broken,
    check: Check | None = None,
    rank: int = 0,
    world: int = 1,
    caption: Literal["first", "random"] = "first",
) -> Iterator[list[Example]]:
    """Yield the examples of this process, a step at a time; the number of workers does not change them.

    Args:
        source: what the indices refer to.
        subset: the examples to train on, (N,).
        seed: of the order.
        batch_size: B, over all processes.
        first_step: counted from the start of the training; a resumed training begins above 0.
        num_steps: number of steps from there.
        num_workers: processes that read ahead; 0 reads in this process.
        broken: counts skipped examples when their step is yielded; the caller checks it.
        check: refuses images of a shape that the backbone cannot read.
        rank: number of this process; it gets every `world`-th example of a step.
        world: number of processes.
        caption: which text is read of an image that has several.

    Yields:
        The readable examples of a step in order; an empty list if all are broken.
    """
    steps = range(first_step, first_step + num_steps)
    indices = (step_indices(subset, seed=seed, step=step, batch_size=batch_size)[rank::world] for step in steps)
    batches = read_batches(source, indices, num_workers=num_workers, broken=broken, check=check)
    for step, examples in enumerate(batches, first_step):
        places = slice(rank, batch_size, world)
        yield examples if caption == "first" else _choose_captions(examples, seed, step, places)


def _choose_captions(examples: list[Example], seed: int, step: int, places: slice) -> list[Example]:
    """Choose one of the captions of each example, by numbers that depend on its place in the step only."""
    shares = np.random.default_rng([seed, step, 0, 1]).random(places.stop)[places]  # nothing else draws from such a key
    return [
        replace(example, caption=example.captions[int(share * len(example.captions))])
        for example, share in zip(examples, shares, strict=False)  # shorter by its broken examples
    ]


def read_batches(
    source: Source, batches: Iterable[Indices], *, num_workers: int, broken: Broken, check: Check | None = None
) -> Iterator[list[Example]]:
    """Yield the readable examples of each batch of indices, in order.

    Args:
        source: what the indices refer to.
        batches: the indices of one batch after another.
        num_workers: processes that read ahead; 0 reads in this process.
        broken: counts skipped examples when their batch is yielded.
        check: refuses images of a shape that the backbone cannot read; runs in this process, where the backbone is.
    """
    loader = DataLoader(
        _Readable(source),
        batch_sampler=(batch.tolist() for batch in batches),
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=end_with_training,
        generator=torch.Generator(),  # without it the loader would draw a seed from the global generator
    )
    for read in loader:
        items = [_check(index, item, check) for index, item in read]
        broken.add(len(items), [str(item) for item in items if isinstance(item, BrokenError)])
        yield [item for item in items if isinstance(item, Example)]


def _check(index: int, item: Example | BrokenError, check: Check | None) -> Example | BrokenError:
    """Return the item, or a BrokenError if the check refuses its image."""
    try:
        if check is not None and isinstance(item, Example):
            check(item.image)
    except ImageError as error:
        return BrokenError(f"example {index}, counted from 0: {error}")
    return item


class _Readable(Dataset[tuple[int, Example | BrokenError]]):
    """A source that returns broken examples as values: an error raised in a worker would end the worker."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[int, Example | BrokenError]:
        try:
            return index, self.source[index]
        except BrokenError as error:
            return index, error
