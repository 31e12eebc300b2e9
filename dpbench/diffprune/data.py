"""The examples of a step: a pure function of (seed, step), so a training resumes from its step number alone.

Step t of batch size B reads positions t*B .. (t+1)*B - 1 of the endless sequence of shuffled epochs.

Shape letters: N examples to train on, B examples of a step.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dpbench.diffprune.example import BrokenError, Example, Source
from dpbench.diffprune.interruption import ignore_first_signal
from dpbench.errors import ConfigError
from dpbench.storage import files

BROKEN_RATIO = 0.01
BROKEN_AFTER = 100

Indices = NDArray[np.int64]


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


@dataclass(slots=True)
class Broken:
    """Examples that were skipped because they cannot be read.

    Attributes:
        num_read: examples read, the broken ones included.
        times: how often each broken example was read (once per epoch), by its error text.
    """

    num_read: int = 0
    times: dict[str, int] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """Return how many of the examples read were broken."""
        return sum(self.times.values())

    @property
    def texts(self) -> list[str]:
        """Return the error text of every broken example once, in the order of their first reading."""
        return list(self.times)

    def add(self, num_read: int, texts: Iterable[str]) -> None:
        """Count examples that were read, and by error text the broken ones among them."""
        self.num_read += num_read
        for text in texts:
            self.times[text] = self.times.get(text, 0) + 1

    def check(self, *, final: bool = False) -> None:
        """Stop the training if more than 1 % is broken, once 100 were read; with `final`, after any number.

        Raises:
            ConfigError: more are broken; the message has their number, the share and the first three texts.
        """
        if self.num_broken <= BROKEN_RATIO * self.num_read or (self.num_read < BROKEN_AFTER and not final):
            return
        raise ConfigError(
            f"--data: {self.num_broken} of {self.num_read} examples read are broken, "
            f"{self.num_broken / self.num_read:.1%} where {BROKEN_RATIO:.0%} is allowed; repair or remove them: "
            f"{'; '.join(self.texts[:3])}"
        )

    def write(self, path: Path) -> None:
        """Write the broken examples as JSON lines, over what the file had.

        Raises:
            StorageError: the disk has an error; the file is as it was.
        """
        lines = [json.dumps({"broken": text, "times": times}) + "\n" for text, times in self.times.items()]
        files.replace(path, "".join(lines).encode())


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
    rank: int = 0,
    world: int = 1,
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
        rank: number of this process; it gets every `world`-th example of a step.
        world: number of processes.

    Yields:
        The readable examples of a step in order; an empty list if all are broken.
    """
    steps = range(first_step, first_step + num_steps)
    indices = (step_indices(subset, seed=seed, step=step, batch_size=batch_size)[rank::world] for step in steps)
    return read_batches(source, indices, num_workers=num_workers, broken=broken)


def read_batches(
    source: Source, batches: Iterable[Indices], *, num_workers: int, broken: Broken
) -> Iterator[list[Example]]:
    """Yield the readable examples of each batch of indices, in order.

    Args:
        source: what the indices refer to.
        batches: the indices of one batch after another.
        num_workers: processes that read ahead; 0 reads in this process.
        broken: counts skipped examples when their batch is yielded.
    """
    loader = DataLoader(
        _Readable(source),
        batch_sampler=(batch.tolist() for batch in batches),
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=ignore_first_signal,
        generator=torch.Generator(),  # without it the loader would draw a seed from the global generator
    )
    for items in loader:
        broken.add(len(items), [str(item) for item in items if isinstance(item, BrokenError)])
        yield [item for item in items if isinstance(item, Example)]


class _Readable(Dataset[Example | BrokenError]):
    """A source that returns broken examples as values: an error raised in a worker would end the worker."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Example | BrokenError:
        try:
            return self.source[index]
        except BrokenError as error:
            return error
