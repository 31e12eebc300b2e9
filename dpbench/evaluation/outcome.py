"""What a run did, and whether its scores can be trusted. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpbench.evaluation.failed_cells import FailedCell
from dpbench.storage.record import Record

MAX_FAILED_RATIO = 0.01
"""Largest share of a cell's samples that may lack an answer."""


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
