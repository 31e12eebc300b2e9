"""Which examples a step reads: a pure function of (seed, epoch), so that a run goes on from its step number alone.

Step t of batch B reads places t*B .. (t+1)*B - 1 of the endless sequence of shuffled epochs.

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
from dpbench.diffprune.interruption import outlive
from dpbench.errors import ConfigError

BROKEN_RATIO = 0.01
BROKEN_AFTER = 100

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """Indices into a source, without common ones, each in random order."""

    training: Indices
    validation: Indices


def split(num: int, *, fraction: float, num_validation: int, seed: int) -> Split:
    """Divide a source: of a seeded permutation the last `num_validation`, and a share of the rest to train on.

    A smaller fraction is a prefix of a larger one, and the validation examples are the same for all.

    Raises:
        ConfigError: nothing is left to train on, or the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"the fraction of the data to train on is {fraction}; give one above 0 and up to 1")
    rest = num - num_validation
    size = round(fraction * rest)
    if num_validation < 0 or size < 1:
        raise ConfigError(
            f"--data: of {num} examples, {num_validation} to validate with and a fraction of {fraction} leave "
            f"{max(size, 0)} to train on; give more data, fewer to validate with or a larger fraction"
        )
    shuffled = np.random.default_rng([seed, 0, 1]).permutation(num)  # three numbers, as `order` takes all the pairs
    return Split(shuffled[:size], shuffled[rest:])


def order(subset: Indices, *, seed: int, epoch: int) -> Indices:
    """Return the examples of an epoch in its order, (N,): `subset` permuted by default_rng([seed, epoch])."""
    return subset[_shuffle(len(subset), seed, epoch)]


@lru_cache(maxsize=2)
def _shuffle(num: int, seed: int, epoch: int) -> Indices:
    """Return a permutation of range(num); kept, as every step of an epoch needs it and a million take a while."""
    permutation: Indices = np.random.default_rng([seed, epoch]).permutation(num)
    permutation.setflags(write=False)
    return permutation


def step_indices(subset: Indices, *, seed: int, step: int, batch_size: int) -> Indices:
    """Return the examples of a step, (B,): its places in the endless sequence of epochs, across their borders."""
    num = len(subset)
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // num
    parts = [_shuffle(num, seed, int(epoch))[places[epochs == epoch] % num] for epoch in np.unique(epochs)]
    chosen: Indices = subset[np.concatenate(parts)]
    return chosen


@dataclass(slots=True)
class Broken:
    """What was skipped.

    Attributes:
        num_read: examples read, the broken ones included.
        times: per broken example its text, and how often it was met (once an epoch).
    """

    num_read: int = 0
    times: dict[str, int] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """Count the broken among the examples read."""
        return sum(self.times.values())

    @property
    def texts(self) -> list[str]:
        """List the broken examples, each once, in the order they were met."""
        return list(self.times)

    def add(self, num_read: int, texts: Iterable[str]) -> None:
        """Count examples read and, by their texts, those of them that are broken."""
        self.num_read += num_read
        for text in texts:
            self.times[text] = self.times.get(text, 0) + 1

    def check(self, *, final: bool = False) -> None:
        """Refuse to go on when more than 1 % is broken, once 100 were read; at the end, however few were.

        Raises:
            ConfigError: more are broken; names how many, the share and the first three.
        """
        if self.num_broken <= BROKEN_RATIO * self.num_read or (self.num_read < BROKEN_AFTER and not final):
            return
        raise ConfigError(
            f"--data: {self.num_broken} of {self.num_read} examples read are broken, "
            f"{self.num_broken / self.num_read:.1%} where {BROKEN_RATIO:.0%} is allowed; mend them or leave them out: "
            f"{'; '.join(self.texts[:3])}"
        )

    def write(self, path: Path) -> None:
        """Write the list, a JSON object a line."""
        lines = [json.dumps({"broken": text, "times": times}) + "\n" for text, times in self.times.items()]
        path.write_text("".join(lines), encoding="utf-8")


def batches(
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
    """Yield the examples of this rank, a step at a time, whatever the number of workers.

    Args:
        source: what the indices point into.
        subset: the examples to train on, (N,).
        seed: of the order.
        batch_size: B, over all ranks.
        first_step: the first step, counted from the start of the training, so as to go on from it.
        num_steps: how many steps from there.
        num_workers: processes that read ahead; 0 reads here.
        broken: takes what is left out, when its step is yielded; the caller checks it.
        rank: this process; it gets every `world`-th example of a step.
        world: how many processes there are.

    Yields:
        The readable examples of a step in order; none when all are broken.
    """
    steps = range(first_step, first_step + num_steps)
    indices = (step_indices(subset, seed=seed, step=step, batch_size=batch_size)[rank::world] for step in steps)
    loader = DataLoader(
        _Readable(source),
        batch_sampler=(part.tolist() for part in indices),
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=outlive,
        generator=torch.Generator(),  # or it would draw from, and so move on, the global one
    )
    for read in loader:
        broken.add(len(read), [str(item) for item in read if isinstance(item, BrokenError)])
        yield [item for item in read if isinstance(item, Example)]


class _Readable(Dataset[Example | BrokenError]):
    """A source that hands out what is broken, as an error raised in a worker would end it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Example | BrokenError:
        try:
            return self.source[index]
        except BrokenError as error:
            return error
