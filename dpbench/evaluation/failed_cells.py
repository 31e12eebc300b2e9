"""Collects the cells of a grid that fail, so that the others can go on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from dpbench.errors import DpbenchError, StorageError, explain
from dpbench.machine.device import is_gpu_lost
from dpbench.manifest.cell import Cell
from dpbench.storage import files


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell that failed, and why in one line."""

    cell: Cell
    reason: str


class FailedCells:
    """Collects the cells of a run that fail.

    Args:
        console: shows each failure, and the traceback of the first unexpected one.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._by_id: dict[str, FailedCell] = {}

    def __contains__(self, cell: Cell) -> bool:
        return cell.id in self._by_id

    @property
    def all(self) -> tuple[FailedCell, ...]:
        """Return the cells that failed, in order."""
        return tuple(self._by_id.values())

    @contextmanager
    def catch(self, cell: Cell, *, reraise: type[DpbenchError] = StorageError) -> Iterator[None]:
        """Run a part of a cell's work: if it fails, only this cell fails.

        Errors that concern the whole run are raised: a full disk, a GPU that no longer answers.

        Args:
            cell: whose work it is.
            reraise: errors that concern the whole run.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, reraise) or files.is_disk_error(error):
                raise
            if is_gpu_lost(error):
                error.add_note(f"The GPU is unusable after an error in {cell.label}; run the same command again.")
                raise
            self._add(cell, error)

    def _add(self, cell: Cell, error: Exception) -> None:
        expected = isinstance(error, DpbenchError)
        if not self._by_id and not expected:
            self.console.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        reason = explain(error)
        self._by_id[cell.id] = FailedCell(cell, reason)
        message = f"{cell.label} failed, the other cells go on: {reason}"
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)
