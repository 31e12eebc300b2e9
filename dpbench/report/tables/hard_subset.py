"""The hard subset: questions that a smaller image of the same budget gets wrong and the unpruned model gets right.

Chosen from a comparison's own samples, per budget: where even `downsample` answers right, no method shows its worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpbench import tasks
from dpbench.errors import ConfigError
from dpbench.report.groups import groups
from dpbench.report.intervals import load_usable
from dpbench.report.runs import Comparison, RowKey, scores_of
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import heading
from dpbench.report.tables.table import DASH, Cell, Row, Section, group_row, number
from dpbench.storage.contributions import Contribution
from dpbench.storage.record import Record
from dpbench.tasks import aggregators

EASY = "downsample"


@dataclass(frozen=True, slots=True)
class Hard:
    """A row's score, 0-100, on the hard questions of one benchmark, and how many they are."""

    score: float
    num_units: int


def section(comparison: Comparison) -> Section:
    """Return the table of hard scores beside the full ones.

    Raises:
        ConfigError: the unpruned model or `downsample` is not among the rows, or their samples are not there.
    """
    hard_scores = scores(comparison)
    names = [name for name in comparison.tasks if any(name in row for row in hard_scores.values())]
    columns = ("Method", *(tasks.ALL[name].title for name in names))
    lines = list[Row]()
    numbers: list[dict[str, Any]] = []
    for title, keys in groups(comparison, hard_scores):
        lines += [group_row(title, len(columns)), _count_row(hard_scores[keys[0]], names)]
        for key in keys:
            row, full = hard_scores[key], scores_of(comparison.rows[key])
            lines.append(Row((Cell(key.label), *(Cell(_text(row.get(name), full.get(name))) for name in names))))
            numbers += _numbers(key, row, full)
    return Section(
        f"{heading(comparison)}: hard subset, hard / full score",
        frame_of(numbers),
        (
            f"Hard: questions that {EASY} to the same budget gets wrong and the unpruned model right; MME by pairs, "
            "MMBench by circles. The choice favours methods that err on other questions than a smaller image does, and "
            f"{EASY} itself would score 0.",
            *_notes(names),
        ),
        columns,
        tuple(lines),
        "hard-subset",
    )


def scores(comparison: Comparison) -> dict[RowKey, dict[str, Hard]]:
    """Return every pruned row's score on the hard questions of its budget, by benchmark.

    Raises:
        ConfigError: see `section`.
    """
    none = comparison.find("none")
    easy = {k.budget: k for k in comparison.rows if k.method == EASY and k.params == "{}"}
    if none is None or not easy:
        missing = "none" if none is None else EASY
        raise ConfigError(
            f"--subset hard: this run has no cell of method {missing}, which the subset is chosen by; add it"
        )
    cells, notes = load_usable(comparison)
    by_row: dict[RowKey, dict[str, Hard]] = {}
    for key in comparison.rows:
        if key.budget in easy and key.method != EASY:
            for task in comparison.tasks:
                chosen = _find_hard(comparison, none, easy[key.budget], task, cells)
                hard_score = _score(comparison.of(key, task), cells, chosen)
                by_row.setdefault(key, {}).update({task: hard_score} if hard_score else {})
    if not any(by_row.values()):
        why = " ".join(notes) or f"{EASY} gets no question wrong that the unpruned model gets right"
        raise ConfigError(f"--subset hard: there is nothing to choose from: {why}")
    return by_row


def _find_hard(
    comparison: Comparison, none: RowKey, easy: RowKey, task: str, cells: Mapping[str, Contribution]
) -> NDArray[np.bool_] | None:
    """Return which units are hard, by the first seed of both."""
    pair = [[record.cell_id for record in comparison.of(key, task) if record.cell_id in cells] for key in (none, easy)]
    if not all(pair):
        return None
    return np.asarray(cells[pair[0][0]].right_U() & ~cells[pair[1][0]].right_U())


def _score(
    records: Iterable[Record], cells: Mapping[str, Contribution], chosen_U: NDArray[np.bool_] | None
) -> Hard | None:
    if chosen_U is None or not chosen_U.any():
        return None
    values = [_hard_score(cells[record.cell_id], chosen_U) for record in records if record.cell_id in cells]
    return Hard(float(np.mean(values)), int(chosen_U.sum())) if values else None


def _hard_score(cell: Contribution, chosen_U: NDArray[np.bool_]) -> float:
    """Return a cell's score on the chosen units; instead of an F1 the share that is right.

    An F1 needs yes and no questions in the benchmark's proportion, which a choice by answers does not keep.
    """
    if cell.detections:
        return 100 * float(cell.right_U()[chosen_U].mean())
    return float(aggregators.score(cell.sums(chosen_U))[0])


def _notes(names: Iterable[str]) -> Iterable[str]:
    titles = [tasks.ALL[name].title for name in names if tasks.ALL[name].metric == aggregators.F1]
    if titles:
        yield f"{', '.join(titles)}: the hard score is the share of right answers, the full score F1."


def _count_row(row: Mapping[str, Hard], names: Iterable[str]) -> Row:
    return Row((Cell("hard questions"), *(Cell(str(row[name].num_units) if name in row else "0") for name in names)))


def _text(hard: Hard | None, full: float | None) -> str:
    return DASH if hard is None else f"{number(hard.score)} / {number(full)}"


def _numbers(key: RowKey, row: Mapping[str, Hard], full: Mapping[str, float]) -> Iterable[dict[str, Any]]:
    for name, hard in row.items():
        yield {
            "Method": key.label,
            "Budget": key.budget.label,
            "Benchmark": tasks.ALL[name].title,
            "Hard": hard.score,
            "Full": full.get(name),
            "Hard questions": hard.num_units,
        }
