"""The comparison table: methods by benchmarks, grouped by budget, as Tables 1 to 3 of the DiffPrune paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dpbench import tasks
from dpbench.manifest.presets import describe
from dpbench.report import counted, marks, retention, spending
from dpbench.report.counted import Counted
from dpbench.report.groups import groups
from dpbench.report.marks import REFERENCES
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey, metric_of_score, scores_of
from dpbench.report.tables import seeds, visual_tokens
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.table import DASH, Cell, Footnotes, Mark, Row, Section, group_row, number
from dpbench.report.tables.visual_tokens import tokens
from dpbench.storage.record import Record
from dpbench.storage.too_long import explain_too_long

LIKE_RANDOM = "~"
UNFINISHED = "not finished in this run: start it again to resume it"
ABSENT = "not part of this run"
Values = Mapping[RowKey, Mapping[str, float | None]]
"""Scores by benchmark and the average retention under `RETENTION`, by row."""


def section(comparison: Comparison, like_random: frozenset[RowKey] = frozenset()) -> Section:
    """Return the table of a comparison.

    Args:
        comparison: records that may share a table.
        like_random: rows whose retention does not differ significantly from `random` at their budget.
    """
    count, values = counted.find(comparison), row_values(comparison)
    spreads = {key: _retention_spread(comparison, records) for key, records in comparison.rows.items()}
    notes, unequal = Footnotes(), visual_tokens.unequal(comparison)
    titles = {name: tasks.ALL[name].title for name in comparison.tasks}
    columns = ("Method", "Loc.", "Tokens", *titles.values(), RETENTION)
    refs = _explain_cells(comparison, count, values, unequal, like_random, notes)
    return Section(
        heading(comparison),
        frame_of([_numbers(comparison, count, key, values[key], spreads) for key in values]),
        (
            *notes_of(comparison, count, like_random),
            *seeds.notes(comparison, spreads),
            *visual_tokens.notes(comparison, unequal),
            *notes.notes(),
        ),
        columns,
        tuple(_rows(comparison, values, spreads, refs, len(columns))),
        "scores",
    )


def row_values(comparison: Comparison) -> dict[RowKey, dict[str, float | None]]:
    """Return every row's score per benchmark, None where it has none, and its average retention."""
    scores = {key: scores_of(records) for key, records in comparison.rows.items()}
    return {
        key: {**{name: row.get(name) for name in comparison.tasks}, RETENTION: retention.average(comparison, row)}
        for key, row in scores.items()
    }


def _retention_spread(comparison: Comparison, records: Iterable[Record]) -> float | None:
    """Return the standard deviation of a row's retention over seeds, None if it has none or is the same for all."""
    averages = [retention.average(comparison, scores) for scores in seeds.scores_by_seed(records).values()]
    return seeds.spread([value for value in averages if value is not None])


def _numbers(
    comparison: Comparison,
    count: Counted,
    key: RowKey,
    values: Mapping[str, float | None],
    spreads: Mapping[RowKey, float | None],
) -> dict[str, Any]:
    records = comparison.rows[key]
    return {
        "Method": key.label,
        "Budget": key.budget.label,
        "Location": location(records),
        "Tokens": tokens(records),
        "Over budget": spending.overspends(comparison, key),
        **{tasks.ALL[name].title: values[name] for name in comparison.tasks},
        RETENTION: values[RETENTION],
        f"{RETENTION} benchmarks": sum(values[name] is not None for name in count.tasks),
        **({f"{RETENTION} deviation": spreads[key]} if any(spreads.values()) else {}),
    }


def _explain_cells(
    comparison: Comparison,
    count: Counted,
    values: Values,
    unequal: Mapping[RowKey, str],
    like_random: frozenset[RowKey],
    notes: Footnotes,
) -> dict[tuple[RowKey, str], tuple[str, ...]]:
    """Return the footnotes of every cell that has some, by row and column, lettered in reading order."""
    refs: dict[tuple[RowKey, str], tuple[str, ...]] = {}
    for _, keys in groups(comparison, values):
        for key in keys:
            overspends = spending.overspends(comparison, key)
            if reason := spending.explain(comparison, key) if overspends else unequal.get(key):
                refs[key, "Tokens"] = (notes.letter(reason),)
            for name in comparison.tasks:
                if values[key][name] is None:
                    refs[key, name] = (notes.letter(why_missing(comparison, key, name)),)
            num = sum(values[key][name] is not None for name in count.tasks)
            partial = (notes.letter(_explain_partial(num, count)),) if 0 < num < len(count.tasks) else ()
            refs[key, RETENTION] = (*((LIKE_RANDOM,) if key in like_random else ()), *partial)
    return refs


def _explain_partial(num: int, count: Counted) -> str:
    return f"mean of {num} of the {len(count.tasks)} benchmarks that count; not comparable with other rows, not ranked"


def _rows(
    comparison: Comparison,
    values: Values,
    spreads: Mapping[RowKey, float | None],
    refs: Mapping[tuple[RowKey, str], tuple[str, ...]],
    width: int,
) -> Iterable[Row]:
    found = marks.of(comparison, values)
    for title, keys in groups(comparison, values):
        yield group_row(title, width)
        for key in keys:
            head = Cell(key.label), Cell(location(comparison.rows[key]) or DASH)
            read = Cell(number(tokens(comparison.rows[key])), "", refs.get((key, "Tokens"), ()))
            row_marks = {name: column.get(key, "") for name, column in found.items()}
            cells = _score_cells(key, values[key], spreads[key], row_marks, refs)
            yield Row((*head, read, *cells))


def _score_cells(
    key: RowKey,
    row: Mapping[str, float | None],
    spread: float | None,
    row_marks: Mapping[str, Mark],
    refs: Mapping[tuple[RowKey, str], tuple[str, ...]],
) -> Iterable[Cell]:
    for name, value in row.items():
        text = number(value) + (f" ± {spread:.1f}" if name == RETENTION and spread is not None else "")
        yield Cell(text, row_marks.get(name, ""), refs.get((key, name), ()))


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


def heading(comparison: Comparison) -> str:
    """Return the model, the number of samples, the protocol and the device."""
    cell = comparison.cell
    limit = "all samples" if cell["limit"] is None else f"{cell['limit']} samples a task"
    device = ", ".join(
        sorted({str(record.environment.get("gpu", record.environment.get("cpu"))) for record in comparison.records})
    )
    return f"{cell['backbone']}, {limit}, {cell['dtype']}, {cell['attention']} attention; answered on {device}"


def notes_of(comparison: Comparison, count: Counted, like_random: frozenset[RowKey]) -> Iterable[str]:
    """Yield notes that explain the numbers."""
    mme = "; MME as share of its maximum" if "mme" in comparison.tasks else ""
    yield (
        f"Scores 0-100{mme}. Tokens: visual tokens read, mean over layers and samples. Best bold, second underlined "
        f"within a budget; {', '.join(REFERENCES[:-1])} and {REFERENCES[-1]} are references and get no mark."
    )
    yield f"Protocol: {describe(comparison.cell, without=('dtype', 'limit'))}."
    if comparison.find("none"):
        yield f"Retention: {count.scope} of score / score of none, in percent."
        yield from count.notes
    else:
        yield "No retention: this run has no cell of method none."
    if like_random:
        yield f"{LIKE_RANDOM}: its retention cannot be told from random's at this budget (95 %, Holm-corrected)."
    yield from warnings(comparison)


def warnings(comparison: Comparison) -> Iterable[str]:
    """Yield what makes scores doubtful: unfinished methods, failed samples, other metrics, mixed versions."""
    records = comparison.records
    yield from _other_metrics(records)
    if idle := sorted({method for method, _ in comparison.planned} - {key.method for key in comparison.rows}):
        yield f"No cell is finished of: {', '.join(idle)}."
    if failed := sum(record.num_failed for record in records):
        yield f"{failed} samples failed and count as wrong; the journals say why."
    yield from explain_too_long(records)
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
