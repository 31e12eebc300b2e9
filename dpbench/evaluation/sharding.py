"""Several processes on one run: which samples are whose, where each writes, and what a launcher says. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from dpbench.errors import ConfigError
from dpbench.storage import locks
from dpbench.storage.journal import Journal

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_WAIT = timedelta(days=30)
_AT_ONCE_S, _POLL_S = 0.2, 0.5
_GATE_S = 5.0
"""Seconds a shard tries to get the run's lock, which other shards hold while they begin."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that share a run's samples; numbers count from 0."""

    number: int = 0
    total: int = 1

    @property
    def label(self) -> str:
        """Return the shard as file names and messages show it."""
        return f"{self.number}-of-{self.total}"

    def owns(self, task: str, group: str) -> bool:
        """Tell whether the samples of an image are this process's; each is exactly one's."""
        digest = sha256(f"{task}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number

    def journal(self, folder: Path, cell_id: str) -> Journal:
        """Open this process's journal of a cell; it knows what all the others had written by then."""
        main, parts = folder / "samples" / f"{cell_id}.jsonl", journals(folder, cell_id)
        mine = folder / "samples" / f"{cell_id}.{self.label}.jsonl"
        others = [main, *(each for each in parts if each != mine)]
        journal = Journal(main, parts) if self.total == 1 else Journal(mine, others)
        journal.mend()
        return journal


WHOLE = Shard()


def journals(folder: Path, cell_id: str) -> list[Path]:
    """Return the journals that shards have left of a cell, in order."""
    return sorted((folder / "samples").glob(f"{cell_id}.*-of-*.jsonl"))


def join(folder: Path, cell_id: str) -> Journal:
    """Move what shards have answered of a cell into its own journal; done twice or killed in between, it is the same.

    No shard may be running.
    """
    journal, parts = Journal(folder / "samples" / f"{cell_id}.jsonl"), journals(folder, cell_id)
    journal.mend()
    for part in parts:
        found = Journal(part).answers
        journal.append(answer for key, answer in found.items() if key not in journal.answers)
        journal.sync()
        part.unlink()
    return journal


@contextmanager
def turn(folder: Path, shard: Shard = WHOLE, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the run folder: alone, or together with other shards.

    Args:
        folder: of the run.
        shard: this process's part.
        waiting: told, once, who is waited for; without it, nobody is.

    Raises:
        BusyError: another process is there that must not be, and is not waited for.
    """
    told = False
    while True:
        with ExitStack() as held:
            try:
                _take(folder, shard, held)
            except locks.BusyError as error:
                busy = error
            else:
                yield
                return
        if waiting is None:
            raise busy
        if not told:
            waiting(f"{folder}: waiting for another dpbench{busy.holder}; --no-wait refuses instead")
        told = True
        time.sleep(_POLL_S)


def _take(folder: Path, shard: Shard, held: ExitStack) -> None:
    """Take the locks of a process: the run's, which a shard only needs to begin, and the shard's or every shard's."""
    gate = locks.take(folder / "run.lock", seconds=_AT_ONCE_S if shard == WHOLE else _GATE_S)
    held.callback(gate.release)
    if shard != WHOLE:
        mine = locks.take(folder / f"shard.{shard.label}.lock", seconds=_AT_ONCE_S)
        held.callback(mine.release)
        gate.release()
        return
    for path in folder.glob("shard.*.lock"):
        lock = locks.take(path, seconds=_AT_ONCE_S)
        path.unlink()
        lock.release()


def requested_shard(num_shards: int | None, shard: int | None) -> Shard:
    """Return the shard that flags name, else the one a launcher gave this process, else the whole.

    Raises:
        ConfigError: one flag without the other, a number out of range, or flags under a launcher.
    """
    ranks = launched()
    if num_shards is None and shard is None:
        return ranks or WHOLE
    if ranks:
        raise ConfigError("--num-shards: the launcher splits the samples already; leave --num-shards and --shard out")
    if num_shards is None or shard is None:
        raise ConfigError("--num-shards and --shard go together; give --num-shards S and --shard 0, 1, ... S-1")
    if num_shards < 1:
        raise ConfigError(f"--num-shards: must be at least 1, got {num_shards}")
    if not 0 <= shard < num_shards:
        raise ConfigError(f"--shard: must be from 0 to {num_shards - 1}, got {shard}")
    return Shard(shard, num_shards)


def launched() -> Shard | None:
    """Return this process's place among those that `accelerate launch` or torchrun started, or None."""
    total = int(os.environ.get("WORLD_SIZE", "1"))
    return Shard(int(os.environ["RANK"]), total) if total > 1 else None


def take_device() -> None:
    """Make the GPU that a launcher gave this process the current one."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


@contextmanager
def together() -> Iterator[None]:
    """Under a launcher, leave the block only when all processes have; then forget that there are others.

    lmms-eval would otherwise score only this process's share.
    """
    import torch

    torch.distributed.init_process_group("gloo", timeout=_WAIT)
    try:
        yield
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    for name in _LAUNCHER:
        os.environ.pop(name, None)
