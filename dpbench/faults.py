"""Cells that fail while the others of a grid go on: which, and why."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from dpbench import storage
from dpbench.errors import DpbenchError, StorageError
from dpbench.manifest import Cell

_LONGEST = 200
"""Characters of a reason."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A cell that failed, and why in one line."""

    cell: Cell
    reason: str


class Faults:
    """Collects the cells of a run that fail.

    Args:
        console: is shown where the first one failed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._found: dict[str, Fault] = {}

    def __contains__(self, cell: Cell) -> bool:
        return cell.id in self._found

    @property
    def found(self) -> tuple[Fault, ...]:
        """Return the cells that failed, in order."""
        return tuple(self._found.values())

    @contextmanager
    def of(self, cell: Cell, *, refuse: type[DpbenchError] = StorageError) -> Iterator[None]:
        """Do a part of a cell's work: where it fails, so does the cell, and nothing else.

        What concerns the whole run is raised: a disk that is full, a GPU that no longer answers.

        Args:
            cell: whose work it is.
            refuse: errors that concern the whole run.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, refuse) or storage.fails(error):
                raise
            if _gpu_lost(error):
                error.add_note(f"The GPU cannot be used after what {cell.label} did; the same command goes on.")
                raise
            self._add(cell, error)

    def _add(self, cell: Cell, error: Exception) -> None:
        known = isinstance(error, DpbenchError)
        if not self._found and not known:
            self.console.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        reason = " ".join(str(error if known else f"{type(error).__name__}: {error}").split())
        reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
        self._found[cell.id] = Fault(cell, reason)
        said = f"{cell.label} failed, the other cells go on: {reason}"
        self.console.print(said, markup=False, highlight=False, soft_wrap=True)


def _gpu_lost(error: Exception) -> bool:
    """Tell whether CUDA itself failed, as after an index out of range: every later call of the process fails too."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
