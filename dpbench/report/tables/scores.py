"""The comparison table: methods by benchmarks, grouped by budget, as Tables 1 to 3 of the DiffPrune paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.manifest.presets import describe
from dpbench.report.runs import Comparison, RowKey, metric_of_score, unpruned_tokens
from dpbench.report.tables import seeds, visual_tokens
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Footnotes, Mark, Row, Section, group_row, mark_best, number
from dpbench.report.tables.visual_tokens import tokens
from dpbench.storage.record import Record
from dpbench.storage.too_long import explain_too_long

RETENTION = "Retention"
LIKE_RANDOM = "~"
UNFINISHED = "not finished in this run: start it again to resume it"
ABSENT = "not part of this run"


def retention(scores: Mapping[str, float], unpruned: Mapping[str, float]) -> float | None:
    """Return the mean over benchmarks of score / unpruned score in percent, or None without a common benchmark."""
    ratios = [100 * scores[name] / unpruned[name] for name in scores if unpruned.get(name)]
    return mean(ratios) if ratios else None


def scores_of(records: Iterable[Record]) -> dict[str, float]:
    """Return a row's score per benchmark, mean over seeds."""
    by_task: dict[str, list[float]] = {}
    for record in records:
        by_task.setdefault(record.cell["task"], []).append(record.score)
    return {name: mean(values) for name, values in by_task.items()}


def section(comparison: Comparison, like_random: frozenset[RowKey] = frozenset()) -> Section:
    """Return the table of a comparison.

    Args:
        comparison: records that may share a table.
        like_random: rows whose retention does not differ significantly from `random` at their budget.
    """
    scores = {key: scores_of(records) for key, records in comparison.rows.items()}
    none = comparison.find("none")
    unpruned = scores[none] if none else {}
    averages = {key: retention(row, unpruned) for key, row in scores.items()}
    spreads = {key: _retention_spread(records, unpruned) for key, records in comparison.rows.items()}
    values = {
        key: {**{name: scores[key].get(name) for name in comparison.tasks}, RETENTION: averages[key]} for key in scores
    }
    notes, unequal = Footnotes(), visual_tokens.unequal(comparison)
    titles = {name: tasks.ALL[name].title for name in comparison.tasks}
    columns = ("Method", "Loc.", "Tokens", *titles.values(), RETENTION)
    return Section(
        heading(comparison),
        frame_of([_numbers(comparison, key, values[key], titles, spreads) for key in values]),
        (
            *notes_of(comparison, unpruned, like_random),
            *seeds.notes(comparison, spreads),
            *visual_tokens.notes(comparison, unequal),
            *_explain_letters(comparison, values, unequal, notes),
        ),
        columns,
        tuple(_rows(comparison, values, spreads, unequal, like_random, notes, len(columns))),
    )


def _retention_spread(records: Iterable[Record], unpruned: Mapping[str, float]) -> float | None:
    """Return the standard deviation of a row's retention over seeds, None if it has none or is the same for all."""
    retentions = [retention(scores, unpruned) for scores in seeds.scores_by_seed(records).values()]
    return seeds.spread([value for value in retentions if value is not None])


def _numbers(
    comparison: Comparison,
    key: RowKey,
    values: Mapping[str, float | None],
    titles: Mapping[str, str],
    spreads: Mapping[RowKey, float | None],
) -> dict[str, Any]:
    records = comparison.rows[key]
    return {
        "Method": key.label,
        "Budget": key.budget.label,
        "Location": location(records),
        "Tokens": tokens(records),
        **{titles.get(name, name): value for name, value in values.items()},
        **({f"{RETENTION} deviation": spreads[key]} if any(spreads.values()) else {}),
    }


def _explain_letters(
    comparison: Comparison,
    values: Mapping[RowKey, Mapping[str, float | None]],
    unequal: Mapping[RowKey, str],
    notes: Footnotes,
) -> tuple[str, ...]:
    """Assign a footnote letter to unequal tokens and missing scores, in reading order, and return the footnotes."""
    for key, row in values.items():
        if key in unequal:
            notes.letter(unequal[key])
        for name in comparison.tasks:
            if row[name] is None:
                notes.letter(why_missing(comparison, key, name))
    return notes.notes()


def _rows(
    comparison: Comparison,
    values: Mapping[RowKey, Mapping[str, float | None]],
    spreads: Mapping[RowKey, float | None],
    unequal: Mapping[RowKey, str],
    like_random: frozenset[RowKey],
    notes: Footnotes,
    width: int,
) -> Iterable[Row]:
    budget: BudgetRequest | None = None
    marks: Mapping[str, Mapping[RowKey, Mark]] = {}
    for key, row in values.items():
        if key.budget != budget:
            budget = key.budget
            marks = _marks(
                {other: values[other] for other in values if other.budget == budget and other.method != "none"}
            )
            yield group_row(budget_heading(comparison, key), width)
        read = Cell(number(tokens(comparison.rows[key])), "", (notes.letter(unequal[key]),) if key in unequal else ())
        head = Cell(key.label), Cell(location(comparison.rows[key]) or DASH), read
        yield Row((*head, *_score_cells(comparison, key, row, spreads[key], marks, key in like_random, notes)))


def _score_cells(
    comparison: Comparison,
    key: RowKey,
    row: Mapping[str, float | None],
    spread: float | None,
    marks: Mapping[str, Mapping[RowKey, Mark]],
    like_random: bool,
    notes: Footnotes,
) -> Iterable[Cell]:
    for name, value in row.items():
        refs = (LIKE_RANDOM,) if name == RETENTION and like_random else ()
        if value is None and name != RETENTION:
            refs = (notes.letter(why_missing(comparison, key, name)),)
        text = number(value) + (f" ± {spread:.1f}" if name == RETENTION and spread is not None else "")
        yield Cell(text, marks.get(name, {}).get(key, ""), refs)


def _marks(rows: Mapping[RowKey, Mapping[str, float | None]]) -> dict[str, dict[RowKey, Mark]]:
    """Return the best and second of every column; a retention over fewer benchmarks than other rows' is not ranked."""
    num = {key: sum(value is not None for value in row.values()) for key, row in rows.items()}
    most = max(num.values(), default=0)
    names = list(next(iter(rows.values()), {}))
    columns = {name: {key: row[name] for key, row in rows.items()} for name in names}
    complete = {key: value for key, value in columns.get(RETENTION, {}).items() if num[key] == most}
    return {name: mark_best(complete if name == RETENTION else columns[name]) for name in names}


def why_missing(comparison: Comparison, key: RowKey, task: str) -> str:
    """Return why a row has no score on a benchmark: its cell is not finished, or is not in the manifest."""
    return UNFINISHED if (key.method, task) in comparison.planned else ABSENT


def location(records: Sequence[Record]) -> str | None:
    """Return where a row's method prunes: Pre, or the decoder layers from its first cut to its last.

    Layer l is the first that reads fewer visual tokens than the layer before, counted from 0. None for the unpruned
    model and where the tokens per layer were not recorded.
    """
    if records[0].cell["method"] == "none":
        return None
    layers = {at_layers(record.visual_tokens_per_layer) for record in records if record.visual_tokens_per_layer}
    return ", ".join(sorted(layers)) or None


def at_layers(visual_tokens_per_layer: Sequence[float]) -> str:
    """Return Pre, L2 or L8-L24 from what each decoder layer read."""
    pairs = pairwise(visual_tokens_per_layer)
    cuts = [layer for layer, (before, after) in enumerate(pairs, start=1) if after < before - 1e-9]
    if not cuts:
        return "Pre"
    return f"L{cuts[0]}" if len(cuts) == 1 else f"L{cuts[0]}-L{cuts[-1]}"


def budget_heading(comparison: Comparison, key: RowKey) -> str:
    """Return the heading of a budget's rows."""
    total = unpruned_tokens(comparison)
    keep, rate = key.budget.keep, key.budget.prune_rate
    if key.budget.keeps_all:
        return f"Unpruned{f', {total:.0f} visual tokens' if total else ''} (100 %)"
    if keep is None:
        return f"Pruning rate {100 * (rate or 0):.1f} %"
    share = f" ({100 * (1 - keep / total):.1f} % pruned)" if total else ""
    return f"Keep {keep} visual tokens{share}"


def heading(comparison: Comparison) -> str:
    """Return the model, the number of samples, the protocol and the device."""
    cell = comparison.cell
    limit = "all samples" if cell["limit"] is None else f"{cell['limit']} samples a task"
    device = ", ".join(
        sorted({str(record.environment.get("gpu", record.environment.get("cpu"))) for record in comparison.records})
    )
    return f"{cell['backbone']}, {limit}, {cell['dtype']}, {cell['attention']} attention; answered on {device}"


def notes_of(comparison: Comparison, unpruned: Mapping[str, float], like_random: frozenset[RowKey]) -> Iterable[str]:
    """Yield notes that explain the numbers."""
    mme = "; MME as share of its maximum" if "mme" in comparison.tasks else ""
    yield (
        f"Scores 0-100{mme}. Tokens: visual tokens read, mean over layers and samples. Best bold, second underlined "
        "within a budget."
    )
    yield f"Protocol: {describe(comparison.cell, without=('dtype', 'limit'))}."
    if unpruned:
        yield "Retention: mean over benchmarks of score / score of none, in percent."
        if zero := [tasks.ALL[name].title for name, score in unpruned.items() if not score]:
            yield f"Retention leaves out {', '.join(zero)}: none scores 0 there."
    else:
        yield "No retention: this run has no cell of method none."
    if like_random:
        yield f"{LIKE_RANDOM}: its retention cannot be told from random's at this budget (95 %, Holm-corrected)."
    yield from _warnings(comparison)


def _warnings(comparison: Comparison) -> Iterable[str]:
    records = comparison.records
    yield from _other_metrics(records)
    if idle := sorted({method for method, _ in comparison.planned} - {key.method for key in comparison.rows}):
        yield f"No cell is finished of: {', '.join(idle)}."
    if failed := sum(record.num_failed for record in records):
        yield f"{failed} samples failed and count as wrong; the journals say why."
    yield from explain_too_long(records)
    partial = [key.label for key, rows in comparison.rows.items() if len(scores_of(rows)) < len(comparison.tasks)]
    if partial:
        yield "A retention over fewer benchmarks than other rows' is not comparable and takes no part in the ranking."
    for name in ("torch", "transformers", "lmms_eval"):
        versions = sorted({record.cell["fingerprints"].get(name, "") for record in records} - {""})
        if len(versions) > 1:
            yield f"Answered with different versions of {name}: {', '.join(versions)}."


def _other_metrics(records: Sequence[Record]) -> Iterable[str]:
    """Yield which columns an earlier version scored by another metric than today's."""
    found = {(record.cell["task"], metric_of_score(record)) for record in records}
    for name, metric in sorted(
        (name, metric) for name, metric in found if metric not in (None, tasks.ALL[name].metric)
    ):
        benchmark = tasks.ALL[name]
        yield (
            f"{benchmark.title}: scored by {metric}, as earlier versions did; the score is {benchmark.measure} now: "
            "run it again."
        )
