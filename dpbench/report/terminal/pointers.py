"""Sentences that say how many rows have a footnote in the full report, in place of the footnotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from dpbench import tasks
from dpbench.measure.stability import MAX_SPREAD
from dpbench.report.counted import Counted
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.tables import efficiency, visual_tokens
from dpbench.storage.record import Profile

SEE = "see --full"
MOST_NAMED = 3
"""Benchmarks that are left out and named, each with its reason."""


def of_left_out(comparison: Comparison, count: Counted) -> Iterable[str]:
    """Yield why there is no retention, or which benchmarks are left out of it; of many the first and their number."""
    if comparison.find("none") is None:
        yield "No retention: this run has no cell of method none."
    elif len(count.left_out) <= MOST_NAMED:
        yield from count.notes
    else:
        name, why = next(iter(count.left_out.items()))
        example, num = f"{tasks.ALL[name].title} for example ({why}): {SEE}.", len(comparison.tasks)
        if count.tasks:
            yield f"{len(count.left_out)} of {num} benchmarks are shown but left out of the average, {example}"
        else:
            yield f"No retention: none of the {num} benchmarks counts for one, {example}"


def of_rows(comparison: Comparison, averages: Collection[RowKey]) -> Iterable[str]:
    """Yield how many rows of a comparison lack benchmarks, or read other numbers of tokens than most.

    Args:
        comparison: the table's.
        averages: the rows that have an average retention.
    """
    if averages and (num := sum(key not in averages for key in comparison.rows)):
        yield f"{_count(num)} no score on some benchmarks, and no average: {SEE}."
    if unequal := visual_tokens.unequal(comparison):
        whose = "its" if len(unequal) == 1 else "their"
        count = _count(len(unequal), ("reads", "read"))
        yield f"{count} another number of tokens than most rows of {whose} budget: {SEE}."


def _count(num: int, verbs: tuple[str, str] = ("has", "have")) -> str:
    return f"{num} row{'' if num == 1 else 's'} {verbs[num != 1]}"


def of_profiles(profiles: Sequence[Profile]) -> Iterable[str]:
    """Yield how many timed rows have each kind of doubt."""
    newest = [profile for group in efficiency.groups(profiles) for profile in group]
    kinds = Counter(kind for profile in newest for kind in {flag.split(":")[0] for flag in profile.flags})
    if num := kinds.pop(efficiency.SCATTERS, 0):
        yield f"{num} timed row{'s scatter' if num > 1 else ' scatters'} by more than {MAX_SPREAD}x: {SEE}."
    if kinds:
        yield f"{_count(sum(kinds.values()), ('is', 'are'))} to be doubted for other reasons: {SEE}."
