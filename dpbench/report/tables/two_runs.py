"""What changed between two runs, and whether it is more than noise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpbench import tasks
from dpbench.errors import ConfigError
from dpbench.report import statistics
from dpbench.report.intervals import SIGNIFICANT
from dpbench.report.runs import RowKey, Run, load, metric_of_score, row_key
from dpbench.report.statistics import Difference, difference, holm
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Row, Section, number, plain_section
from dpbench.storage import contributions
from dpbench.storage.contributions import Contribution
from dpbench.storage.record import Record
from dpbench.tasks import aggregators

Key = tuple[RowKey, str, int]
"""A row, a benchmark and a seed: what both runs may have."""
NOISE, CHANGED, SAME, UNKNOWN = "noise", "more than noise", "identical", "unknown: no samples"
OTHER = "other quantities"


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in both runs.

    Attributes:
        first: score in the first run.
        second: score in the second.
        difference: second minus first with its interval, or None where a run's samples are not there.
        paired: both answered the same samples.
        metrics: the two metrics that the scores are, where they differ; then there is no difference.
    """

    first: float
    second: float
    difference: Difference | None
    paired: bool
    metrics: tuple[str, str] | None = None


def sections(first: Path, second: Path, resamples: int = statistics.RESAMPLES) -> list[Section]:
    """Return the table of differing conditions, and the table of the scores that both runs have.

    Raises:
        ConfigError: the runs have no cell in common.
        RecordError: a record or a journal cannot be read.
    """
    runs = load(first), load(second)
    cells = _by_key(runs[0]), _by_key(runs[1])
    common = [key for key in cells[0] if key in cells[1]]
    if not common:
        raise ConfigError(
            f"--diff: {first} and {second} have no method, budget and benchmark in common; give two runs of the same"
        )
    changes = compare(runs, cells, common, resamples)
    return [_compare_conditions(runs, cells, common), _scores(runs, cells, changes)]


def _by_key(run: Run) -> dict[Key, Record]:
    by_key = {(row_key(record.cell), record.cell["task"], record.cell["seed"]): record for record in run.records}
    order = list(tasks.ALL)
    return dict(sorted(by_key.items(), key=lambda item: (item[0][0].order, order.index(item[0][1]), item[0][2])))


def compare(
    runs: tuple[Run, Run], cells: tuple[dict[Key, Record], dict[Key, Record]], common: list[Key], resamples: int
) -> dict[Key, Change]:
    """Return every common cell's change, paired where both answered the same samples."""
    samples = [_load_samples(run, records, common) for run, records in zip(runs, cells, strict=True)]
    changes = {}
    for key in common:
        scores = cells[0][key].score, cells[1][key].score
        if metrics := _other_metrics(cells[0][key], cells[1][key]):
            changes[key] = Change(*scores, None, paired=False, metrics=metrics)
            continue
        pair = samples[0].get(key), samples[1].get(key)
        paired = pair[0] is not None and pair[1] is not None and pair[0].layout.id == pair[1].layout.id
        change = _difference(pair[0], pair[1], resamples) if pair[0] and pair[1] else None
        changes[key] = Change(*scores, change, paired)
    return changes


def _other_metrics(first: Record, second: Record) -> tuple[str, str] | None:
    """Return the metrics of two scores if they are not the same: POPE's was accuracy in earlier versions."""
    metrics = metric_of_score(first), metric_of_score(second)
    return (metrics[0], metrics[1]) if metrics[0] and metrics[1] and metrics[0] != metrics[1] else None


def _load_samples(run: Run, records: Mapping[Key, Record], common: list[Key]) -> dict[Key, Contribution]:
    """Return the samples of a run's cells that give the recorded score."""
    loaded = contributions.load(run.folder, [records[key] for key in common])
    cells = {key: loaded[records[key].cell_id] for key in common if records[key].cell_id in loaded}
    return {key: cell for key, cell in cells.items() if cell.gives(records[key].score)}


def _difference(first: Contribution, second: Contribution, resamples: int) -> Difference | None:
    """Return second minus first; if both answered the same images, both are resampled with the same draws."""
    sums = first.sums(), second.sums()
    seeds = first.layout.images, second.layout.images
    drawn = [
        statistics.resample({0: cell_sums}, seed, resamples)[0] for cell_sums, seed in zip(sums, seeds, strict=True)
    ]
    plain = [float(aggregators.score(cell_sums)[0]) for cell_sums in sums]
    return difference(plain[1] - plain[0], drawn[1] - drawn[0], min(len(cell_sums.clusters) for cell_sums in sums))


def _scores(
    runs: tuple[Run, Run], cells: tuple[dict[Key, Record], dict[Key, Record]], changes: Mapping[Key, Change]
) -> Section:
    corrected = holm({key: change.difference.p for key, change in changes.items() if change.difference})
    verdicts = {key: verdict(change, corrected.get(key)) for key, change in changes.items()}
    columns = ("Method", "Budget", "Benchmark", "First", "Second", "Second minus first [95 %]", "p", "Verdict")
    lines = [
        Row(tuple(map(Cell, _texts(key, change, corrected.get(key), verdicts[key])))) for key, change in changes.items()
    ]
    numbers = [_numbers(key, change, corrected.get(key), verdicts[key]) for key, change in changes.items()]
    counts = ", ".join(
        f"{list(verdicts.values()).count(v)} {v}"
        for v in (CHANGED, NOISE, SAME, OTHER, UNKNOWN)
        if v in verdicts.values()
    )
    notes = [
        f"{counts}, of {len(changes)} cells in both runs; {len(cells[0]) - len(changes)} in the first alone, "
        f"{len(cells[1]) - len(changes)} in the second alone.",
        f"95 % intervals from {statistics.RESAMPLES:,} resamples of images; p two-sided, Holm-corrected; "
        f"more than noise: p < {SIGNIFICANT}.",
    ]
    if any(change.difference and not change.paired for change in changes.values()):
        notes.append(
            "Where the runs answered different samples the comparison is unpaired, and its intervals are wider."
        )
    if UNKNOWN in verdicts.values():
        notes.append(
            f"Unknown: a run folder has neither {contributions.NAME} nor samples/ that give its recorded score."
        )
    for task, metrics in sorted({(key[1], change.metrics) for key, change in changes.items() if change.metrics}):
        notes.append(
            f"{tasks.ALL[task].title}: the first is {metrics[0]}, the second {metrics[1]}; run the older again."
        )
    heading = f"Scores of {runs[0].folder.name} (first) and {runs[1].folder.name} (second)"
    return Section(heading, frame_of(numbers), tuple(notes), columns, tuple(lines), "changes", num_labels=3)


def verdict(change: Change, p: float | None) -> str:
    """Return whether a change is more than noise."""
    if change.metrics:
        return OTHER
    if change.difference is None or p is None:
        return UNKNOWN
    if change.paired and change.difference.low == change.difference.high == change.difference.value == 0:
        return SAME
    return CHANGED if p < SIGNIFICANT else NOISE


def _texts(key: Key, change: Change, p: float | None, outcome: str) -> tuple[str, ...]:
    row, task, seed = key
    interval = DASH
    if change.difference:
        low, high = (number(value, sign=True) for value in (change.difference.low, change.difference.high))
        interval = f"{number(change.difference.value, sign=True)} [{low}, {high}]"
    label = row.label + (f" seed {seed}" if seed else "")
    scores = number(change.first), number(change.second)
    return label, row.budget.label, tasks.ALL[task].title, *scores, interval, number(p, 3), outcome


def _numbers(key: Key, change: Change, p: float | None, outcome: str) -> dict[str, Any]:
    row, task, seed = key
    numbers: dict[str, Any] = {
        "Method": row.label,
        "Budget": row.budget.label,
        "Benchmark": tasks.ALL[task].title,
        "Seed": seed,
        "First": change.first,
        "Second": change.second,
        "Difference": None if change.metrics else change.second - change.first,
    }
    if change.difference:
        numbers |= {"Low": change.difference.low, "High": change.difference.high}
    return numbers | {"p (Holm)": p, "Paired": change.paired, "Verdict": outcome}


def _compare_conditions(
    runs: tuple[Run, Run], cells: tuple[dict[Key, Record], dict[Key, Record]], common: list[Key]
) -> Section:
    """Return the table of conditions that differ between the common cells of both runs."""
    both = [_collect_conditions(records[key] for key in common) for records in cells]
    rows = [
        (name, *("; ".join(sorted(side.get(name, {"not recorded"}))) for side in both))
        for name in dict.fromkeys([*both[0], *both[1]])
        if both[0].get(name) != both[1].get(name)
    ]
    heading = f"What differs between {runs[0].folder.name} (first) and {runs[1].folder.name} (second)"
    notes = () if rows else ("Nothing in the records: same protocol, weights, data, code, versions and machine.",)
    return plain_section("conditions", heading, ("What", "First", "Second"), rows, notes)


IDENTITY = ("method", "params", "keep", "prune_rate", "task", "seed", "fingerprints")


def _collect_conditions(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return all values of the fields of protocol, fingerprints and environment; data and rules by benchmark."""
    by_name: dict[str, set[str]] = {}
    for record in records:
        names = {name: value for name, value in record.cell.items() if name not in IDENTITY}
        for name, value in record.cell["fingerprints"].items():
            owner = {"source": record.cell["method"], "method_files": record.cell["method"]}.get(name)
            owner = record.cell["task"] if name in ("data", "task") else owner
            names[f"{name} of {owner}" if owner else name] = value
        names |= {f"environment: {name}": value for name, value in record.environment.items() if name != "versions"}
        for name, value in names.items():
            by_name.setdefault(name, set()).add(value if isinstance(value, str) else json.dumps(value))
    return by_name
