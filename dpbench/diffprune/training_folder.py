"""The folder of a training: which one may be begun or resumed there, and that only one runs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from dpbench.diffprune import checkpoint, resume
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.resume import STATE
from dpbench.errors import ConfigError
from dpbench.storage import locks

MACHINE_SETTINGS = ("micro_batch", "num_workers", "save_minutes")
"""Settings that a resumed training may change: they are about the machine, not about the result."""


def check(recipe: Recipe, out: Path, *, is_resumed: bool) -> None:
    """Refuse to overwrite a training or a scorer, and to resume a training with another recipe."""
    if not (out / STATE).is_file():
        if is_resumed:
            raise ConfigError(f"--resume: {out} holds no training ({STATE}); remove --resume to begin one")
        if (out / checkpoint.CARD).is_file():
            raise ConfigError(f"--out {out}: there is a scorer already; choose another folder or move it away")
        return
    if not is_resumed:
        raise ConfigError(f"--out {out}: there is a training already; go on with --resume, or choose another folder")
    stored, settings = resume.read_recipe(out), recipe.model_dump(mode="json")
    for name, value in settings.items():
        # what an older checkpoint does not have was as by default
        before = stored.get(name, Recipe.model_fields[name].default)
        if name not in MACHINE_SETTINGS and before != value:
            raise ConfigError(
                f"--resume: {out} was begun with {name} = {before}, now it is {value}; "
                "give the same settings, or another --out"
            )


@contextmanager
def exclusive(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """Refuse a folder in which another training runs; of the processes of one training, the main one holds the lock."""
    if not accelerator.is_main_process:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = locks.take(out / "train.lock", seconds=1)
    try:
        yield
    finally:
        lock.release()
