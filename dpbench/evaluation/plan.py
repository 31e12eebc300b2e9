"""Which cells of a manifest are recorded, which are to run, and what a run of them did. No torch."""

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
"""Share of a cell's samples that may have no answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A manifest's cells, split by whether a record exists.

    Attributes:
        folder: where this run's files go.
        pending: cells without a record.
        done: records of the manifest's finished cells.
    """

    folder: Path
    pending: tuple[Cell, ...]
    done: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did.

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
        MissingError: weights or data are not there.
    """
    folder = out / manifest.name
    recorded = {found.cell_id: found for found in record.read(folder / "records.jsonl", Record)}
    wanted = [with_fingerprints(cell, fingerprints(cell, data_root)) for cell in cells(manifest)]
    wanted = list({cell.id: cell for cell in wanted}.values())
    return Plan(
        folder,
        tuple(cell for cell in wanted if cell.id not in recorded),
        tuple(recorded[cell.id] for cell in wanted if cell.id in recorded),
    )
