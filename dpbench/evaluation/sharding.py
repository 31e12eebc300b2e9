"""Several processes share one run: who answers which samples, who writes where, and who holds the folder. No torch."""

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

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_BARRIER_TIMEOUT = timedelta(days=30)
"""Processes finish their shares at different times; the first one must not give up on the last."""
_LOCK_S, _POLL_S = 0.2, 0.5
_START_S = 5.0
"""Seconds a shard tries to get the run's lock, which other shards hold while they start."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that share the samples of a run; numbered from 0."""

    number: int = 0
    total: int = 1

    @property
    def label(self) -> str:
        """Return the shard's name in file names and messages."""
        return f"{self.number}-of-{self.total}"

    def owns(self, task: str, group: str) -> bool:
        """Return True if this process answers the samples of an image; exactly one shard does."""
        digest = sha256(f"{task}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number

    def open_journal(self, folder: Path, cell_id: str) -> Journal:
        """Open this process's journal of a cell, with the answers that all others had written by then."""
        main, parts = folder / "samples" / f"{cell_id}.jsonl", find_shard_journals(folder, cell_id)
        own = folder / "samples" / f"{cell_id}.{self.label}.jsonl"
        others = [main, *(part for part in parts if part != own)]
        journal = Journal(main, parts) if self.total == 1 else Journal(own, others)
        journal.mend()
        return journal


WHOLE = Shard()


def find_shard_journals(folder: Path, cell_id: str) -> list[Path]:
    """Return the journals that shards wrote for a cell, sorted."""
    return sorted((folder / "samples").glob(f"{cell_id}.*-of-*.jsonl"))


def join_journals(folder: Path, cell_id: str) -> Journal:
    """Move the shards' answers to a cell into its main journal. No shard may be running.

    A part is removed only after its answers are on the disk, so that an interrupted join can be repeated.
    """
    journal, parts = Journal(folder / "samples" / f"{cell_id}.jsonl"), find_shard_journals(folder, cell_id)
    journal.mend()
    for part in parts:
        answers = Journal(part).answers
        journal.append(answer for key, answer in answers.items() if key not in journal.answers)
        journal.sync()
        part.unlink()
    return journal


@contextmanager
def hold_folder(folder: Path, shard: Shard = WHOLE, *, notify: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the run folder: alone, or together with other shards.

    Args:
        folder: of the run.
        shard: this process's part.
        notify: called once, with a message, when another process must be waited for; None raises instead of waiting.

    Raises:
        BusyError: another process holds the folder, and `notify` is None.
    """
    is_notified = False
    while True:
        with ExitStack() as stack:
            try:
                _take_locks(folder, shard, stack)
            except locks.BusyError as error:
                busy = error
            else:
                yield
                return
        if notify is None:
            raise busy
        if not is_notified:
            notify(f"{folder}: waiting for another dpbench{busy.holder}; --no-wait refuses instead")
        is_notified = True
        time.sleep(_POLL_S)


def _take_locks(folder: Path, shard: Shard, stack: ExitStack) -> None:
    """Take a process's locks and release them with `stack`.

    A shard holds its own lock, and the run's lock only while it starts. A whole run holds the run's lock, and checks
    that no shard's lock is taken.
    """
    run_lock = locks.take(folder / "run.lock", seconds=_LOCK_S if shard == WHOLE else _START_S)
    stack.callback(run_lock.release)
    if shard != WHOLE:
        shard_lock = locks.take(folder / f"shard.{shard.label}.lock", seconds=_LOCK_S)
        stack.callback(shard_lock.release)
        run_lock.release()
        return
    for path in folder.glob("shard.*.lock"):
        lock = locks.take(path, seconds=_LOCK_S)
        path.unlink()
        lock.release()


def requested_shard(num_shards: int | None, shard: int | None) -> Shard:
    """Return the shard that the flags name, else the one that a launcher gave this process, else the whole run.

    Raises:
        ConfigError: one flag without the other, a number out of range, or flags under a launcher.
    """
    launched = launcher_shard()
    if num_shards is None and shard is None:
        return launched or WHOLE
    if launched:
        raise ConfigError("--num-shards: the launcher already splits the samples; remove --num-shards and --shard")
    if num_shards is None or shard is None:
        raise ConfigError("--num-shards and --shard go together; give --num-shards S and --shard 0, 1, ... S-1")
    if num_shards < 1:
        raise ConfigError(f"--num-shards: must be at least 1, got {num_shards}")
    if not 0 <= shard < num_shards:
        raise ConfigError(f"--shard: must be from 0 to {num_shards - 1}, got {shard}")
    return Shard(shard, num_shards)


def launcher_shard() -> Shard | None:
    """Return the shard of a process that `accelerate launch` or torchrun started, or None."""
    total = int(os.environ.get("WORLD_SIZE", "1"))
    return Shard(int(os.environ["RANK"]), total) if total > 1 else None


def select_device() -> None:
    """Make the GPU that the launcher assigned to this process the current one."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


@contextmanager
def process_group() -> Iterator[None]:
    """Leave the block only when all processes of the launcher have reached its end.

    Afterwards the launcher's variables are removed: lmms-eval would otherwise score only this process's share.
    """
    import torch

    torch.distributed.init_process_group("gloo", timeout=_BARRIER_TIMEOUT)
    try:
        yield
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
