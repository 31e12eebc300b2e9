"""Commands that are asked to stop: SIGTERM ends them as Ctrl-C does, and they say what goes on from there. No torch."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import current_thread, main_thread

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM, as shells count them."""
CHECKPOINT = "training.safetensors"
"""What a training goes on from, in its folder."""


@contextmanager
def terminable() -> Iterator[None]:
    """Leave the block by SystemExit on SIGTERM, so that files are closed and locks are released."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def said(arguments: Sequence[str]) -> str:
    """Return what a stopped command says, with the one that goes on.

    Args:
        arguments: what it was given.
    """
    again = list(arguments)
    if again[:1] == ["train"] and "--resume" not in again and (_scorer_folder(again) / CHECKPOINT).is_file():
        again.append("--resume")
    return f"stopped; what was finished is kept, go on with: {shlex.join(['dpbench', *again])}"


def _scorer_folder(arguments: Sequence[str]) -> Path:
    """Return where `dpbench train` writes, as `dpbench.flags.scorer_folder` does."""
    words = [part for each in arguments for part in (each.split("=", 1) if each.startswith("--") else [each])]
    given = dict(pairwise(words))
    variant = given.get("--variant", "diffprune")
    default = Path("scorers") / f"{given.get('--backbone')}{'' if variant == 'diffprune' else f'-{variant}'}"
    return Path(given.get("--out", default))
