"""The held-out images: read once before the first validation, so that every validation is over the same ones."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import Check, Indices, order, read_batches
from dpbench.diffprune.example import Example, Source
from dpbench.errors import ConfigError


class HeldOut(NamedTuple):
    """The images to validate on.

    Attributes:
        indices: of those that can be read, into the source, (N,).
        broken: those that cannot, as every process counted them.
    """

    indices: Indices
    broken: Broken


def find_readable(
    source: Source, indices: Indices, accelerator: Accelerator, *, num_workers: int, check: Check | None = None
) -> HeldOut:
    """Read the held-out images, a share of them in each process, and return those that can be read.

    Args:
        source: what the indices refer to.
        indices: of all held-out images, (N,).
        accelerator: of this process, and the others of the training.
        num_workers: processes that read ahead; 0 reads in this process.
        check: refuses images of a shape that the backbone cannot read.

    Raises:
        ConfigError: none can be read, or too many are broken; says how many and why.
    """
    share = indices[accelerator.process_index :: accelerator.num_processes]
    own, broken = Broken(), Broken()
    one_by_one = read_batches(source, share[:, None], num_workers=num_workers, broken=own, check=check)
    readable = gather_object([index for index, examples in zip(share, one_by_one, strict=True) if examples])
    own.share(broken)
    if not readable:
        raise ConfigError(
            f"--data: none of the {len(indices)} held-out images can be read with a caption; repair them or give "
            f"other data: {broken.texts[0]}"
        )
    if broken.num_broken > 1:  # of a few images, one that is broken says nothing about the data
        broken.check(final=True)
    return HeldOut(indices[np.isin(indices, readable)], broken)


def read_share(
    source: Source, indices: Indices, accelerator: Accelerator, *, seed: int, batch_size: int, num_workers: int
) -> Iterator[list[Example]]:
    """Yield this process's share of the held-out images; which images these are does not depend on the batch size.

    Args:
        source: what the indices refer to.
        indices: from `find_readable`, (N,).
        accelerator: of this process, and the others of the training.
        seed: of the order.
        batch_size: images at once.
        num_workers: processes that read ahead; 0 reads in this process.

    Raises:
        ConfigError: an image could be read before and cannot be now; every process raises it, after the last image.
    """
    own, broken = Broken(), Broken()
    share = order(indices, seed=seed, epoch=0)[accelerator.process_index :: accelerator.num_processes]
    batches = (share[start : start + batch_size] for start in range(0, len(share), batch_size))
    yield from read_batches(source, batches, num_workers=num_workers, broken=own)
    own.share(broken)
    if broken.num_broken:
        raise ConfigError(
            f"--data: {broken.num_broken} held-out images could be read when the training was started and cannot be "
            f"now, so losses would not compare; restore them and go on with --resume: {broken.texts[0]}"
        )
