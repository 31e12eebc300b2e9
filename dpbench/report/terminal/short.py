"""The short form of a report: one table that fits the width, the result in sentences, and what there is besides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import mean, pstdev

from dpbench import tasks
from dpbench.report import counted, intervals, marks, retention, runs, summary
from dpbench.report.figures import data
from dpbench.report.groups import groups
from dpbench.report.intervals import SIGNIFICANT, Intervals
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.tables import ablation, efficiency, probes, scores, seeds, visual_tokens
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Row, Section, Tone, group_row, number
from dpbench.report.terminal import fitting, pointers
from dpbench.storage.record import Profile

INTERVAL, AGAINST_RANDOM = "[95 %]", "vs random"
NUM_SCORES = (3, 2)
"""Benchmarks that get a column beside a retention: three where there is room, and two where there is not."""
MIN_LABEL = 16
"""Places below which a label is not shortened."""
COSTS = ("Method", "Tokens", "TFLOP", "GFLOP", "TTFT (ms)", "Speed-up")
"""Columns of the efficiency table that the short form keeps."""
Labels = Mapping[RowKey, str]


@dataclass(frozen=True, slots=True)
class Block:
    """What the short form says of one comparison, or of the profiles of a run that has nothing else.

    Attributes:
        section: its table; the notes explain it and point to what is left out.
        sentences: the result.
    """

    section: Section
    sentences: tuple[str, ...]


def blocks(folders: Sequence[Path], width: int | None = None) -> list[Block]:
    """Return the short form of some runs.

    Args:
        folders: the runs.
        width: of the terminal, in characters; None where there is room for any table.

    Raises:
        ConfigError: a folder has no records.
        RecordError: records cannot be read, or cannot share a table.
    """
    loaded = [runs.load(folder) for folder in folders]
    found = [_scores(comparison, width) for comparison in runs.comparisons(loaded)]
    profiles = [profile for run in loaded for profile in run.profiles]
    measured = [Block(section, ()) for section in probes.sections(line for run in loaded for line in run.probes)]
    if not found:
        return [*cost_blocks(profiles), *measured]
    return [*found[:-1], _with_costs(found[-1], profiles) if profiles else found[-1], *measured]


def cost_blocks(profiles: Sequence[Profile]) -> list[Block]:
    """Return the short form of profiles alone: a table for each machine and configuration."""
    return [_costs(group, profiles) for group in efficiency.groups(profiles)]


def _scores(comparison: Comparison, width: int | None) -> Block:
    bootstrap = intervals.load_or_compute(comparison)
    sentences = summary.sentences(comparison, bootstrap)
    if ablation.is_ablation(comparison):
        return Block(ablation.section(comparison), sentences[:1])  # the others are about single trainings
    return Block(_widest_that_fits(comparison, bootstrap, width), sentences)


def _widest_that_fits(comparison: Comparison, bootstrap: Intervals, width: int | None) -> Section:
    """Return the table with as many scores as fit, the labels of its rows whole, then brief, then shortened."""
    by_spread = _widest_spread_first(comparison)
    section = Section("", frame_of([]))
    for num in _numbers_of_scores(comparison):
        for labels in ({key: key.label for key in comparison.rows}, brief_labels(comparison.rows)):
            section = build(comparison, bootstrap, by_spread[:num], labels)
            if width is None or fitting.total(fitting.widths(section)) <= width:
                return section
    assert width is not None
    rest = fitting.total(fitting.widths(section)[1:]) + fitting.GAP
    return fitting.shorten_labels(section, max(MIN_LABEL, width - rest))


def _numbers_of_scores(comparison: Comparison) -> Sequence[int]:
    """Return how many scores to try, the most first: without a retention to show, all that fit."""
    num = len(comparison.tasks)
    return sorted({min(num, most) for most in (NUM_SCORES if retention.averages(comparison) else range(1, num + 1))})[
        ::-1
    ]


def brief_labels(keys: Iterable[RowKey]) -> Labels:
    """Return labels with the values of parameters alone, or whole ones if two rows of a budget would look alike."""
    keys = list(keys)
    brief = {key: key.method + re.sub(r"[\w-]+=", "", key.label.removeprefix(key.method)) for key in keys}
    is_unique = len({(key.budget, label) for key, label in brief.items()}) == len(keys)
    return brief if is_unique else {key: key.label for key in keys}


def _widest_spread_first(comparison: Comparison) -> list[str]:
    """Return the benchmarks, first those whose scores differ most between the methods of one budget.

    Benchmarks that do not count for retention come last, whatever their spread.
    """
    count = counted.find(comparison)
    pruned = [key for key in comparison.rows if not key.budget.keeps_all]
    by_budget = [list(keys) for _, keys in groupby(pruned, key=lambda key: key.budget)]
    values = scores.row_values(comparison)

    def spread(name: str) -> float:
        known = [[v for key in keys if (v := values[key][name]) is not None] for keys in by_budget]
        return mean([pstdev(row) if row else 0.0 for row in known] or [0.0])

    return sorted(comparison.tasks, key=lambda name: (name not in count.tasks, -spread(name)))


def build(comparison: Comparison, bootstrap: Intervals, names: Sequence[str], labels: Labels) -> Section:
    """Return a row per method and budget: tokens, retention with its interval, some scores, and how `random` compares.

    Within a budget the highest retention comes first. Columns in which no row has anything are left out.

    Args:
        comparison: the table's.
        bootstrap: its intervals.
        names: benchmarks that get a column.
        labels: of the rows.
    """
    columns = ("Method", "Tokens", RETENTION, INTERVAL, *(tasks.ALL[name].title for name in names), AGAINST_RANDOM)
    cells, averages = _cells(comparison, bootstrap, names), retention.averages(comparison)
    rows = list[Row]()
    for title, keys in groups(comparison, comparison.rows):
        rows.append(group_row(title, len(columns)))
        for key in sorted(keys, key=lambda key: -averages.get(key, -1.0)):
            rows.append(Row((Cell(labels[key]), *cells[key])))
    section = Section(scores.heading(comparison), frame_of([]), (), columns, tuple(rows))
    return replace(_without_empty_columns(section), notes=tuple(_notes(comparison, bootstrap, names)))


def _cells(comparison: Comparison, bootstrap: Intervals, names: Sequence[str]) -> dict[RowKey, list[Cell]]:
    """Return every row's cells behind its label."""
    values, averages = scores.row_values(comparison), retention.averages(comparison)
    found, against, ends = marks.of(comparison, values), _against_random(bootstrap), bootstrap.of_retention()
    cells: dict[RowKey, list[Cell]] = {}
    for key, records in comparison.rows.items():
        shown = {RETENTION: averages.get(key), **{name: values[key][name] for name in names}}
        average, *rest = (Cell(number(value), found.get(name, {}).get(key, "")) for name, value in shown.items())
        tokens, interval = Cell(number(visual_tokens.tokens(records))), Cell(_format_ends(ends.get(key)), tone="quiet")
        cells[key] = [tokens, average, interval, *rest, against.get(key, Cell(""))]
    return cells


def _format_ends(ends: tuple[float, float] | None) -> str:
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


def _against_random(bootstrap: Intervals) -> Mapping[RowKey, Cell]:
    """Return how every row's retention compares with `random`'s at its budget."""
    found: dict[RowKey, Cell] = {}
    for at, p in bootstrap.corrected("random", of_retention=True).items():
        text, tone = _verdict(bootstrap.differences[at].value, p)
        found[at[0]] = Cell(text, tone=tone)
    return found


def _verdict(difference: float, p: float) -> tuple[str, Tone]:
    if p >= SIGNIFICANT:
        return "alike", "quiet"
    return ("better", "good") if difference > 0 else ("worse", "bad")


def _without_empty_columns(section: Section) -> Section:
    data_rows = [row for row in section.rows if row.kind != "group"]
    used = [at for at in range(len(section.columns)) if any(row.cells[at].text not in ("", DASH) for row in data_rows)]
    return select(section, used)


def select(section: Section, places: Sequence[int]) -> Section:
    """Return a table with some of its columns."""
    rows = tuple(replace(row, cells=tuple(row.cells[at] for at in places)) for row in section.rows)
    return replace(section, columns=tuple(section.columns[at] for at in places), rows=rows)


def _notes(comparison: Comparison, bootstrap: Intervals, names: Sequence[str]) -> Iterable[str]:
    """Yield what explains the numbers, once each, and pointers to what is in the full report."""
    count, averages = counted.find(comparison), retention.averages(comparison)
    if averages:
        found = marks.of(comparison, scores.row_values(comparison)).values()
        legend = " Best bold, second underlined." if any(map(any, (column.values() for column in found))) else ""
        yield f"{RETENTION}: {count.scope} of score / score of none, in percent.{legend}"
    yield from pointers.of_left_out(comparison, count)
    if len(names) < len(comparison.tasks):
        titles = " and ".join([", ".join(tasks.ALL[name].title for name in names[:-1]), tasks.ALL[names[-1]].title])
        yield f"Scores, 0-100: {titles}, on which methods differ most, of {len(comparison.tasks)} benchmarks."
    if bootstrap.corrected("random", of_retention=True):
        yield f"{AGAINST_RANDOM}: alike if its retention cannot be told from random's (95 %, Holm-corrected)."
    yield from seeds.notes(comparison, {})
    yield from scores.warnings(comparison)
    yield from bootstrap.notes
    yield from pointers.of_rows(comparison, averages)


def _with_costs(block: Block, profiles: Sequence[Profile]) -> Block:
    notes = (*block.section.notes, *pointers.of_profiles(profiles))
    costs = summary.profile_sentences(data.cost_tables(profiles))
    return Block(replace(block.section, notes=notes), (*block.sentences, *costs))


def _costs(group: Sequence[Profile], profiles: Sequence[Profile]) -> Block:
    """Return the short form of profiles alone: tokens, FLOPs, time to the first token and speed-up."""
    full = efficiency.section(group, profiles)
    table = select(full, [at for at, name in enumerate(full.columns) if name in COSTS])
    rows = tuple(replace(row, cells=(replace(row.cells[0], refs=()), *row.cells[1:])) for row in table.rows)
    notes = ("TTFT: time to the first token, median [10th-90th percentile].", *pointers.of_profiles(group))
    return Block(replace(table, rows=rows, notes=notes), summary.profile_sentences(data.cost_tables(group)))
