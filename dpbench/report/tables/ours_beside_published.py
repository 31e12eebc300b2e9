"""Our records beside the paper's tables: theirs, ours, the difference, and what in the protocol can explain it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from dpbench import tasks
from dpbench.budget import BudgetRequest
from dpbench.report.runs import Comparison, RowKey, unpruned_tokens
from dpbench.report.tables import ablation, published
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import RETENTION, heading, retention, scores_of
from dpbench.report.tables.table import Cell, Footnotes, Row, Section, group_row, number
from dpbench.storage.record import Profile

NEAR = 0.005
"""Largest difference of two pruning rates that count as the same budget."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the paper with ours of the same method and share of tokens.

    Attributes:
        name: name of the row.
        group: heading above the row.
        theirs: by column; None where the paper prints a dash.
        ours: by column; a column without a value was not measured.
        reason: why the system is not run here, or None.
    """

    name: str
    group: str
    theirs: Mapping[str, float | None]
    ours: Mapping[str, float]
    reason: str | None = None


def table_of(backbone: str) -> int:
    """Return the number of the paper's table to compare a backbone with; toy-llava is compared with LLaVA-1.5."""
    return 2 if backbone.startswith("llava-next") else 3 if backbone.startswith("qwen") else 1


def scores(comparison: Comparison) -> Section:
    """Return Table 1, 2 or 3 beside a comparison."""
    table = published.load(table_of(comparison.cell["backbone"]))
    names = [*table.rows[0]["scores"], RETENTION]
    pairs = [
        Pair(
            row["row"],
            published.group(table, row),
            {**row["scores"], RETENTION: row["average"]},
            _ours(comparison, table, row),
            published.why_not_run(table, row),
        )
        for row in table.rows
    ]
    titles = {name: tasks.ALL[name].title if name != RETENTION else "Avg." for name in names}
    digits = {"mme": 0}
    shared = "Avg. of ours: over the benchmarks that their row and ours both have."
    return _section(table, heading(comparison), pairs, titles, (shared, *differences(comparison, table)), digits)


def _ours(comparison: Comparison, table: PaperTable, row: Mapping[str, Any]) -> dict[str, float]:
    key, none = _match(comparison, row), comparison.find("none")
    if key is None:
        return {}
    points = {name: value for name in row["scores"] if (value := _points(comparison, key, name, table)) is not None}
    shares = {n: v for n, v in scores_of(comparison.rows[key]).items() if row["scores"].get(n) is not None}
    average = retention(shares, scores_of(comparison.rows[none])) if none else None
    return points | ({RETENTION: average} if average is not None else {})


def _match(comparison: Comparison, row: Mapping[str, Any]) -> RowKey | None:
    """Return our row of the same method at the same share of tokens."""
    if row["method"] in (None, "none"):
        return comparison.find("none") if row["method"] == "none" else None
    total = unpruned_tokens(comparison)
    for key in comparison.rows:
        rate = _share_removed(key.budget, total)
        if key.method == row["method"] and rate is not None and abs(rate - row["prune_rate"]) < NEAR:
            return comparison.find(key.method, key.budget)
    return None


def _share_removed(budget: BudgetRequest, total: float | None) -> float | None:
    """Return the share of visual tokens that a budget removes; None if it cannot be computed."""
    if budget.keep is None:
        return budget.prune_rate
    return 1 - budget.keep / total if total else None


def _points(comparison: Comparison, key: RowKey, task: str, table: PaperTable) -> float | None:
    """Return a score on the paper's scale: MME in points of the metric the paper prints."""
    records = comparison.of(key, task)
    metric = table.data["metrics"].get(task, {}).get("value")
    if metric is None:
        return mean(record.score for record in records) if records else None
    values = [record.metrics[metric] for record in records if metric in record.metrics]
    return mean(values) if values and len(values) == len(records) else None


def differences(comparison: Comparison, table: PaperTable) -> Iterable[str]:
    """Yield what differs between the paper's protocol and ours, and may explain a difference."""
    cell = comparison.cell
    if cell["backbone"] != table.backbone:
        yield f"May explain it: model: theirs {table.title}, ours {cell['backbone']}; only shares compare."
    environment = comparison.records[0].environment
    ours = {**cell, "gpu": environment.get("gpu", f"none ({environment.get('cpu')})")}
    yield from _protocol(table, ours)
    for task in comparison.tasks:
        yield from _task(table, task, comparison)
    if cell["limit"] is not None:
        yield f"May explain it: samples: theirs all, ours {cell['limit']} a benchmark."


def _protocol(table: PaperTable, ours: Mapping[str, Any]) -> Iterable[str]:
    for name, stated in table.protocol.items():
        theirs, our_value = stated["value"], ours.get(name)
        if theirs is None and our_value is not None:
            yield f"May explain it: {name}: theirs {stated['from']}, ours {our_value}."
        elif theirs != our_value and not (name == "gpu" and theirs.split()[-1] in str(our_value).split()):
            columns = [tasks.ALL[task].title for task in stated.get("columns", ())]
            where = f" (column {', '.join(columns)})" if columns else ""
            yield f"May explain it{where}: {name}: theirs {theirs} ({stated['from']}), ours {our_value}."


def _task(table: PaperTable, task: str, comparison: Comparison) -> Iterable[str]:
    benchmark = tasks.find(task)
    stated = table.data["splits"].get(task)
    if stated and stated["value"] != benchmark.split:
        ours = f"{benchmark.split} ({benchmark.measure})"
        theirs = f"{stated['value']} ({stated['from']})"
        yield f"May explain it (column {benchmark.title}): split: theirs {theirs}, ours {ours}."
    metric = table.data["metrics"].get(task)
    metrics = {name for record in comparison.records if record.cell["task"] == task for name in record.metrics}
    if metric and metric["value"] not in metrics:
        theirs = f"{metric['value']} ({metric['from']})"
        yield f"Column {benchmark.title}: theirs is {theirs}, which our records do not have."


def costs(profiles: Sequence[Profile], heading: str) -> Section:
    """Return Table 4 beside profiles that were taken under one set of conditions.

    Args:
        profiles: at least one.
        heading: of their own table.
    """
    table = published.load(4)
    none = next((profile for profile in profiles if profile.method == "none"), None)
    total = none.num_visual if none else None
    pairs = [
        Pair(row["row"], "", row["values"], _cost(profiles, row, table, total), published.why_not_run(table, row))
        for row in table.rows
    ]
    first = profiles[0]
    ours = {
        "dtype": first.environment.get("dtype"),
        "gpu": first.environment.get("gpu", f"none ({first.environment.get('cpu')})"),
        "batch_size": first.batch_size,
        "attention": first.environment.get("attention"),
    }
    notes = list(_protocol(table, ours))
    if first.backbone != table.backbone:
        notes.insert(0, f"May explain it: model: theirs LLaVA-1.5-7B, ours {first.backbone}.")
    if first.configuration != "eager":
        notes.append(f"May explain it: configuration: theirs not stated, ours {first.configuration}.")
    return _section(table, heading, pairs, table.data["columns"], notes, dict.fromkeys(table.data["columns"], 2))


def _cost(
    profiles: Sequence[Profile], row: Mapping[str, Any], table: PaperTable, total: float | None
) -> dict[str, float]:
    rate = 1 - row["budget"] / table.data["num_visual"]
    for profile in profiles:
        share = _share_removed(profile.budget_request, total)
        is_near = profile.method == "none" or (share is not None and abs(share - rate) < NEAR)
        if profile.method == row["method"] and is_near:
            times = {
                name: median(values) for name, values in profile.stages_ms.items() if values and name in row["values"]
            }
            return times | ({"tflops": profile.stages_flops["ttft"] / 1e12} if "ttft" in profile.stages_flops else {})
    return {}


def variants(comparison: Comparison) -> Section:
    """Return Table 5 beside our ablation."""
    table, ours = published.load(5), ablation.variants(comparison)
    total = unpruned_tokens(comparison)
    shares = {budget: _share_removed(budget, total) for row in ours.values() for budget in row}
    budgets = {str(keep): 1 - keep / table.data["num_visual"] for keep in table.data["budgets"]["value"]}
    pairs = []
    for row in table.rows:
        pooled = ours.get(row["variant"], {})
        values = {
            name: pooled[b].value
            for name, rate in budgets.items()
            for b, share in shares.items()
            if b in pooled and share is not None and abs(share - rate) < NEAR
        }
        pairs.append(Pair(row["row"], "", dict(zip(budgets, row["values"], strict=True)), values))
    titles = {name: f"{name} of {table.data['num_visual']}" for name in budgets}
    notes = [note for note in differences_of_ablation(comparison, table)]
    return _section(table, heading(comparison), pairs, titles, notes, {})


def differences_of_ablation(comparison: Comparison, table: PaperTable) -> Iterable[str]:
    """Yield what differs between the paper's ablation and ours."""
    cell = comparison.cell
    environment = comparison.records[0].environment
    if cell["backbone"] != table.backbone:
        yield f"May explain it: model: theirs LLaVA-1.5-7B, ours {cell['backbone']}; budgets are matched by share."
    yield from _protocol(table, {**cell, "gpu": environment.get("gpu", f"none ({environment.get('cpu')})")})
    if set(comparison.tasks) != set(table.data["tasks"]):
        theirs, ours = ", ".join(table.data["tasks"]), ", ".join(comparison.tasks)
        yield f"May explain it: benchmarks: theirs {theirs}, ours {ours}."


def _section(
    table: PaperTable,
    ours: str,
    pairs: Sequence[Pair],
    titles: Mapping[str, str],
    notes: Iterable[str],
    digits: Mapping[str, int],
) -> Section:
    """Return three lines per row: theirs, ours, ours minus theirs."""
    columns = ("Method", "Whose", *titles.values())
    lines, letters, group = list[Row](), Footnotes(), ""
    for pair in pairs:
        if pair.group != group:
            group = pair.group
            lines.append(group_row(group, len(columns)))
        refs = (letters.letter(pair.reason),) if pair.reason else ()
        lines += _build_rows(pair, list(titles), digits, refs)
    numbers = [
        {
            "Table": table.number, "Row": pair.name, "Group": pair.group or None, "Column": title,
            "Theirs": pair.theirs.get(name), "Ours": pair.ours.get(name), "Difference": _difference(pair, name),
        }
        for pair in pairs
        for name, title in titles.items()
    ]  # fmt: skip
    cited = (f"{published.LEGEND} {'; '.join(letters.notes())}.",) if letters.notes() else ()
    head = f"Table {table.number} of the paper beside ours: {table.title}; ours: {ours}"
    return Section(head, frame_of(numbers), (f"Theirs: {table.source}.", *notes, *cited), columns, tuple(lines))


def _build_rows(pair: Pair, names: Sequence[str], digits: Mapping[str, int], refs: tuple[str, ...]) -> Iterable[Row]:
    theirs = [Cell(number(pair.theirs.get(name), digits.get(name, 1))) for name in names]
    yield Row((Cell(pair.name, refs=refs), Cell("paper"), *theirs), "cited" if pair.reason else "data")
    if pair.ours:
        ours = [Cell(number(pair.ours.get(name), digits.get(name, 1))) for name in names]
        apart = [Cell(number(_difference(pair, name), digits.get(name, 1), sign=True)) for name in names]
        yield Row((Cell(""), Cell("ours"), *ours))
        yield Row((Cell(""), Cell("difference"), *apart))


def _difference(pair: Pair, name: str) -> float | None:
    theirs, ours = pair.theirs.get(name), pair.ours.get(name)
    return None if theirs is None or ours is None else ours - theirs
