"""Several processes that train together: one of them speaks for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from rich.console import Console

from dpbench.diffprune import interruption
from dpbench.errors import ConfigError, MissingError


def console_of(accelerator: Accelerator, console: Console | None) -> Console:
    """Return where a process shows its messages: of several the main one only."""
    return console or Console(stderr=True) if accelerator.is_main_process else Console(quiet=True)


def end_with_launcher(accelerator: Accelerator) -> None:
    """End each of several processes with the launcher that started them, which may be killed and then ends nobody."""
    if accelerator.num_processes > 1:
        interruption.end_with(os.getppid())


@contextmanager
def one_voice(accelerator: Accelerator) -> Iterator[None]:
    """Let only the main process print an error that all processes of the training have."""
    try:
        yield
    except (ConfigError, MissingError) as error:
        if accelerator.is_main_process:
            raise
        sys.exit(error.exit_code)
