"""How many visual tokens rows read, and which rows read another number than most rows of their budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import mean

from dpbench import backbones
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage.record import Record

TOLERANCE = 0.02
"""Numbers of tokens that differ by less, as a share of what most rows read, count as equal."""
ROUNDING = 1.0
"""Visual tokens by which a method that cuts inside the LLM may miss its budget."""


def tokens(records: Iterable[Record]) -> float | None:
    """Return the visual tokens a row read, mean over layers, samples and benchmarks."""
    read = [mean(record.visual_tokens_per_layer) for record in records if record.visual_tokens_per_layer]
    return mean(read) if read else None


def unequal(comparison: Comparison) -> dict[RowKey, str]:
    """Return the rows that read another number of visual tokens than most rows of their budget, with both numbers."""
    found: dict[RowKey, str] = {}
    for _, keys in groupby(sorted(comparison.rows, key=lambda key: key.order), key=lambda key: key.budget):
        read = _read(comparison, [key for key in keys if key.method != "none"])
        usual = _usual(list(read.values()))
        found |= {
            key: f"reads {number:.0f} visual tokens where most rows of this budget read {usual:.0f}"
            for key, number in read.items()
            if not _is_equal(number, usual)
        }
    return found


def notes(comparison: Comparison, unequal_rows: Iterable[RowKey]) -> Iterable[str]:
    """Yield why rows of one budget read different numbers of tokens of AnyRes images."""
    if any(unequal_rows) and comparison.cell["anyres"] == "per-view" and _has_tiles(comparison.cell["backbone"]):
        yield (
            "A count is for an image of the most views: of an image of fewer views some methods read less, others "
            "share the count over those there are. The official codes differ in the same way; --anyres global gives "
            "equal tokens."
        )


def _has_tiles(backbone: str) -> bool:
    return backbone in backbones.FAMILIES and backbones.FAMILIES[backbone].tiles


def _read(comparison: Comparison, keys: Sequence[RowKey]) -> dict[RowKey, float]:
    """Return what rows read, over the benchmarks that all of them have: other benchmarks have images of other sizes."""
    names = [{record.cell["task"] for record in comparison.rows[key]} for key in keys]
    shared = set.intersection(*names) if names else set()
    read: Mapping[RowKey, float | None] = {
        key: tokens(record for record in comparison.rows[key] if record.cell["task"] in shared) for key in keys
    }
    return {key: number for key, number in read.items() if number is not None}


def _usual(numbers: Sequence[float]) -> float:
    """Return the number that most rows read; the larger one if two are read by as many. 0 without rows."""
    return max(numbers, key=lambda one: (sum(_is_equal(other, one) for other in numbers), one), default=0.0)


def _is_equal(number: float, usual: float) -> bool:
    return abs(number - usual) <= max(ROUNDING, TOLERANCE * usual)
