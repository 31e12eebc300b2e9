"""Sentences about samples that no row was asked, as they do not fit into the model's context unpruned. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from dpbench import tasks
from dpbench.storage.record import Record


def explain_too_long(records: Iterable[Record]) -> list[str]:
    """Return a sentence per backbone and benchmark of which samples were left out, in the order of the benchmarks."""
    counts: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    for record in records:
        total = record.num_samples + record.num_too_long
        counts[record.cell["backbone"], record.cell["task"]].add((record.num_too_long, total))
    return [
        _sentence(backbone, tasks.ALL[task].title, sorted(counts[backbone, task]))
        for backbone in dict.fromkeys(backbone for backbone, _ in counts)
        for task in tasks.ALL
        if any(left_out for left_out, _ in counts.get((backbone, task), ()))
    ]


def _sentence(backbone: str, title: str, counts: list[tuple[int, int]]) -> str:
    """Return what was left out of a benchmark, or that its rows differ in it: records of before this rule have 0."""
    most, total = counts[-1]
    if len(counts) == 1:
        return (
            f"{most:,} of {total:,} samples of {title} are too long for the unpruned {backbone} and are left out of "
            "every row."
        )
    return (
        f"The rows of {title} were not asked the same samples: from {counts[0][0]:,} to {most:,} of {total:,} are left "
        f"out as too long for the unpruned {backbone}; run all rows again."
    )
