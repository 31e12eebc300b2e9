"""Which cells of a manifest are recorded and which still have to run, and the outcome of a run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpbench.evaluation.failed_cells import FailedCell
from dpbench.manifest.cell import Cell, cells, with_fingerprints
from dpbench.manifest.fingerprint import fingerprints
from dpbench.manifest.schema import Manifest
from dpbench.storage import record
from dpbench.storage.record import Record

MAX_FAILED_RATIO = 0.01
"""Largest share of a cell's samples that may lack an answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A manifest's cells, split by whether a record exists.

    Attributes:
        manifest: what is run.
        data_root: folder with the benchmarks' data, or None for the hub's cache.
        folder: where this run's files go.
        pending: cells without a record.
        done: records of the manifest's finished cells.
    """

    manifest: Manifest
    data_root: Path | None
    folder: Path
    pending: tuple[Cell, ...]
    done: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        added: records of the cells that this run finished, in order.
        existing: records found on disk before this run.
        unfinished: per cell with unanswered samples, its label, how many are answered and how many there are.
        failed: the cells that failed, and why; they have no record.
        feature_cache: images that came from the feature cache ("hits") and images that were "encoded" by this process.
    """

    added: tuple[Record, ...] = ()
    existing: tuple[Record, ...] = ()
    unfinished: tuple[tuple[str, int, int], ...] = ()
    failed: tuple[FailedCell, ...] = ()
    feature_cache: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_failed_samples(self) -> int:
        """Return how many samples of the manifest's cells have no answer."""
        return sum(record.num_failed for record in (*self.added, *self.existing))

    @property
    def is_complete(self) -> bool:
        """Return True if every cell is finished and has enough answers for its score to be trusted."""
        shares = [record.num_failed / record.num_samples for record in (*self.added, *self.existing)]
        return not (self.unfinished or self.failed) and all(share <= MAX_FAILED_RATIO for share in shares)


def plan(manifest: Manifest, out: Path, data_root: Path | None) -> Plan:
    """Expand a manifest and look up which of its cells are recorded.

    Raises:
        MissingError: weights or data are missing.
    """
    folder = out / manifest.name
    recorded = {line.cell_id: line for line in record.read(folder / "records.jsonl", Record)}
    expanded = [with_fingerprints(cell, fingerprints(cell, data_root)) for cell in cells(manifest)]
    by_id = {cell.id: cell for cell in expanded}  # entries may repeat a cell
    return Plan(
        manifest,
        data_root,
        folder,
        tuple(cell for cell in by_id.values() if cell.id not in recorded),
        tuple(recorded[cell_id] for cell_id in by_id if cell_id in recorded),
    )
