"""Which cells of a manifest are recorded and which still have to run, and the outcome of a run. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dpbench.manifest.cell import Cell, cells, with_fingerprints
from dpbench.manifest.fingerprint import fingerprints
from dpbench.manifest.schema import Manifest
from dpbench.storage import record
from dpbench.storage.record import Record


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

    def parts(self) -> list[Plan]:
        """Return the pending work as one plan for each backbone that has any, in order."""
        pending = {part.backbone: tuple(cell for cell in self.pending if cell.entry == part.backbone)
                   for part in self.manifest.parts()}  # fmt: skip
        return [
            replace(self, manifest=part, pending=pending[part.backbone])
            for part in self.manifest.parts()
            if pending[part.backbone]
        ]


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
