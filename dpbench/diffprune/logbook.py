"""The numbers of a training: shown in a progress bar, written as JSON lines and to TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dpbench.machine.progress_bar import Bar
from dpbench.storage import files

LOG, BOARD = "log.jsonl", "tensorboard"


class Logbook:
    """Shows and writes the numbers of one training as they come."""

    def __init__(self, bar: Bar, log: Path | None, board: Any, *, title: str, num_steps: int, step: int) -> None:
        self.bar, self.log, self.board = bar, log, board
        self.task = bar.add_task(title, total=num_steps, completed=step, numbers="validating")
        self.hard = math.nan
        self.clock = time.perf_counter()

    def log_step(self, row: Mapping[str, float], num_images: int) -> None:
        """Show and log a step over `num_images` images."""
        now = time.perf_counter()
        speed, self.clock = num_images / (now - self.clock), now
        self._write({**row, "images_per_s": round(speed, 2)})
        self.bar.update(self.task, completed=row["step"], numbers=format_numbers(row, self.hard, speed))

    def log_validation(self, row: Mapping[str, float]) -> None:
        """Log a validation; its time is not counted in images per second."""
        self.hard = row["hard"]
        self._write(row)
        self.clock = time.perf_counter()

    def _write(self, row: Mapping[str, float]) -> None:
        if self.log is not None:
            line = json.dumps({name: round(value, 6) for name, value in row.items()}) + "\n"
            files.append(self.log, line.encode(), sync=False)
        for name, value in row.items() if self.board else ():
            self.board.add_scalar(name, value, row["step"])


def format_numbers(row: Mapping[str, float], hard: float, speed: float) -> str:
    """Return the numbers beside the bar, the deployed loss first: only that one says whether the scorer learns.

    The training loss also falls where only the denoiser learns what all captions have in common.

    Args:
        row: of the log.
        hard: validation loss under hard top-k, NaN before the first.
        speed: images per second.
    """
    deployed = "-" if math.isnan(hard) else f"{hard:.3f}"
    per_second = f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"
    return f"deployed {deployed} train {row['loss']:.3f} tau {row['tau']:.3f} {per_second} img/s"


@contextmanager
def open_logbook(
    folder: Path, console: Console, *, title: str, num_steps: int, step: int, enabled: bool = True
) -> Iterator[Logbook]:
    """Open the log, board and bar of a training.

    Args:
        folder: gets the log and the board.
        console: shows the bar.
        title: text in front of the bar.
        num_steps: steps of the full training.
        step: the step to resume from; rows that were logged after it are removed. -1 removes all rows.
        enabled: False in all processes but the main one; they show and write nothing.
    """
    columns = (BarColumn(8), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn())
    with ExitStack() as stack:
        log = folder / LOG if enabled else None
        if log is not None:
            _remove_rows_after(step, log)
        board = stack.enter_context(_open_board(folder, console)) if enabled else None
        bar = Bar(TextColumn("{task.description}"), *columns, console=console, disable=not enabled)
        yield Logbook(stack.enter_context(bar), log, board, title=title, num_steps=num_steps, step=max(0, step))


def _remove_rows_after(step: int, path: Path) -> None:
    """Remove the rows after the step a training resumes from, and a last row that a kill cut off."""
    if path.is_file():
        rows = [line for line in path.read_bytes().split(b"\n")[:-1] if _step_of(line) <= step]
        files.replace(path, b"".join(row + b"\n" for row in rows))


def _step_of(line: bytes) -> float:
    """Return the step of a row; infinity if the row has none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


@contextmanager
def _open_board(folder: Path, console: Console) -> Iterator[Any]:
    """Open a TensorBoard log; without tensorboardX, print a hint and yield None."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        console.print(f"no TensorBoard log: pip install tensorboardX; the same numbers are in {LOG}")
        yield None
        return
    with SummaryWriter(str(folder / BOARD)) as writer:
        yield writer
