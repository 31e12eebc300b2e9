"""Tables of differences: does a method lose to the unpruned model, does it beat random, and is it more than noise?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dpbench import tasks
from dpbench.report import counted
from dpbench.report.groups import groups
from dpbench.report.intervals import REFERENCES, SIGNIFICANT, Intervals, Key
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.statistics import RESAMPLES, Difference
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import heading
from dpbench.report.tables.table import DASH, Cell, Row, Section, group_row, number

Outcome = Literal["win", "tie", "loss"]
SURE = "*"
METHOD = (
    f"Paired on the same samples; 95 % intervals from {RESAMPLES:,} resamples of images, each benchmark's own "
    "aggregator re-run on every one."
)


def sections(comparison: Comparison, intervals: Intervals) -> list[Section]:
    """Return the table of average retention and a table of benchmarks per reference; empty without differences."""
    if not intervals.differences:
        return []
    per_benchmark = [_benchmarks(comparison, intervals, reference) for reference in REFERENCES]
    return [_averages(comparison, intervals), *(table for table in per_benchmark if table.rows)]


def outcome(difference: Difference, corrected: float) -> Outcome:
    """Return win or loss where a difference is more than noise after correction, else tie."""
    if corrected >= SIGNIFICANT:
        return "tie"
    return "win" if difference.value > 0 else "loss"


def tally(intervals: Intervals, key: RowKey, reference: str) -> dict[Outcome, int]:
    """Count the benchmarks a row wins, ties and loses against a reference."""
    corrected = intervals.corrected(reference, of_retention=False)
    outcomes = [outcome(intervals.differences[k], p) for k, p in corrected.items() if k[0] == key]
    return {"win": outcomes.count("win"), "tie": outcomes.count("tie"), "loss": outcomes.count("loss")}


def _averages(comparison: Comparison, intervals: Intervals) -> Section:
    columns = ["Method"]
    for reference in REFERENCES:
        columns += [f"Minus {reference} [95 %]", "p", f"Win/tie/loss to {reference}"]
    corrected = {reference: intervals.corrected(reference, of_retention=True) for reference in REFERENCES}
    keys = [key for key in comparison.rows if any(compared[0] == key for compared in intervals.differences)]
    numbers, lines = [], list[Row]()
    for key in _with_groups(comparison, keys, len(columns), lines):
        cells = [Cell(key.label)]
        for reference in REFERENCES:
            at: Key = (key, reference, RETENTION)
            difference, p = intervals.differences.get(at), corrected[reference].get(at)
            count = tally(intervals, key, reference)
            is_known = any(compared[:2] == at[:2] for compared in intervals.differences)
            cells += [
                _interval(difference, p),
                Cell(_p(p)),
                Cell("/".join(map(str, count.values())) if is_known else DASH),
            ]
            if is_known:
                numbers.append(_numbers(at, difference, p) | count)
        lines.append(Row(tuple(cells)))
    return Section(
        f"{heading(comparison)}: average retention, differences in points",
        frame_of(numbers),
        (
            METHOD,
            f"Average retention: {counted.find(comparison).scope}.",
            f"p: two-sided, Holm-corrected over its column. {SURE}: p < {SIGNIFICANT}. Win, tie, loss: benchmarks "
            f"whose difference is more than noise at {SIGNIFICANT}, Holm-corrected over all rows and benchmarks.",
        ),
        tuple(columns),
        tuple(lines),
        "retention-differences",
    )


def _benchmarks(comparison: Comparison, intervals: Intervals, reference: str) -> Section:
    corrected = intervals.corrected(reference, of_retention=False)
    names = [name for name in comparison.tasks if any(key[2] == name for key in corrected)]
    columns = ("Method", *(tasks.ALL[name].title for name in names))
    keys = [key for key in comparison.rows if any(compared[0] == key for compared in corrected)]
    lines = list[Row]()
    for key in _with_groups(comparison, keys, len(columns), lines):
        at = [(key, reference, name) for name in names]
        rest = [_interval(intervals.differences.get(compared), corrected.get(compared)) for compared in at]
        lines.append(Row((Cell(key.label), *rest)))
    return Section(
        f"{heading(comparison)}: score minus {reference}'s, in points",
        frame_of([_numbers(key, intervals.differences[key], p) for key, p in corrected.items()]),
        (METHOD, f"{SURE}: p < {SIGNIFICANT}, two-sided, Holm-corrected over this table."),
        columns,
        tuple(lines),
        f"minus-{reference}",
    )


def _with_groups(comparison: Comparison, keys: Sequence[RowKey], width: int, lines: list[Row]) -> Iterable[RowKey]:
    """Yield rows, adding the heading of each group to the lines first."""
    for title, rows in groups(comparison, keys):
        lines.append(group_row(title, width))
        yield from rows


def _interval(difference: Difference | None, p: float | None) -> Cell:
    if difference is None:
        return Cell(DASH)
    text = (
        f"{number(difference.value, sign=True)} [{number(difference.low, sign=True)}, "
        f"{number(difference.high, sign=True)}]"
    )
    return Cell(text, refs=(SURE,) if p is not None and p < SIGNIFICANT else ())


def _p(p: float | None) -> str:
    if p is None or p < 0.001:
        return DASH if p is None else "<0.001"
    return f"{p:.3f}" if (p < SIGNIFICANT) == (round(p, 3) < SIGNIFICANT) else f"{p:.5f}"


def _numbers(key: Key, difference: Difference | None, p: float | None) -> dict[str, Any]:
    row, reference, column = key
    title = tasks.ALL[column].title if column != RETENTION else column
    numbers: dict[str, Any] = {
        "Method": row.label,
        "Budget": row.budget.label,
        "Against": reference,
        "Column": title,
    }
    if difference is not None:
        numbers |= {"Difference": difference.value, "Low": difference.low, "High": difference.high, "p": difference.p}
    return numbers | {"p (Holm)": p}
