"""Several processes on one run: which samples are whose, where each writes, and what a launcher says. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from dpbench.errors import ConfigError
from dpbench.journal import Journal

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_WAIT = timedelta(days=30)


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
        if self.total == 1:
            return Journal(main, parts)
        mine = folder / "samples" / f"{cell_id}.{self.label}.jsonl"
        return Journal(mine, [main, *(each for each in parts if each != mine)])


WHOLE = Shard()


def journals(folder: Path, cell_id: str) -> list[Path]:
    """Return the journals that shards have left of a cell, in order."""
    return sorted((folder / "samples").glob(f"{cell_id}.*-of-*.jsonl"))


def join(folder: Path, cell_id: str) -> Journal:
    """Move what shards have answered of a cell into its own journal; done twice or killed in between, it is the same.

    No shard may be running.
    """
    journal, parts = Journal(folder / "samples" / f"{cell_id}.jsonl"), journals(folder, cell_id)
    for part in parts:
        found = Journal(part).answers
        journal.append(answer for key, answer in found.items() if key not in journal.answers)
        journal.sync()
        part.unlink()
    return journal


@contextmanager
def turn(folder: Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold the run folder: alone, or together with other shards.

    Raises:
        ConfigError: another process is there that must not be.
    """
    busy = f"{folder}: another dpbench is running there; wait for it or give another --out"
    with ExitStack() as held:
        gate = held.enter_context(_locked(folder / "run.lock", busy, wait=0.2 if shard == WHOLE else 60))
        if shard == WHOLE:
            for path in folder.glob("shard.*.lock"):
                with _locked(path, busy, wait=0.2):
                    path.unlink()
        else:
            held.enter_context(_locked(folder / f"shard.{shard.label}.lock", busy, wait=0.2))
            gate.release()
        yield


@contextmanager
def _locked(path: Path, busy: str, *, wait: float) -> Iterator[FileLock]:
    try:
        with FileLock(path, timeout=wait) as lock:
            yield lock
    except Timeout:
        raise ConfigError(busy) from None


def chosen(num_shards: int | None, shard: int | None) -> Shard:
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
    if not 0 <= shard < num_shards:
        raise ConfigError(f"--shard: there is no shard {shard} of {num_shards}; they count from 0 to {num_shards - 1}")
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
