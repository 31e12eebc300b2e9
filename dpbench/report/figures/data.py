"""The numbers behind figures and page, from comparisons and profiles. No torch, no matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from dpbench.report.retention import averages
from dpbench.report.runs import Comparison, RowKey, format_params, unpruned_tokens
from dpbench.report.tables import ablation, efficiency
from dpbench.report.tables.visual_tokens import tokens
from dpbench.storage.record import Profile, Record

RowIntervals = Mapping[RowKey, tuple[float, float]]
"""Lower and upper end of the 95 % interval of a row's average retention, in percent."""
TTFT_STAGES = ("encode", "reduce", "splice", "prefill")
"""Parts of the time to the first token; signals and rankings are part of reduce."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value.

    Attributes:
        label: the series it belongs to, as the legend shows it.
        method: what its colour follows.
        at: position on the horizontal axis.
        value: how high.
        low: lower end of its interval, or None without one.
        high: upper end.
        budget: as tables show it.
    """

    label: str
    method: str
    at: float
    value: float
    low: float | None = None
    high: float | None = None
    budget: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """The costs of one method at one budget up to the first token.

    Attributes:
        label: method with its parameters.
        method: its name.
        budget: as tables show it.
        num_visual: visual tokens the LLM reads, mean over layers.
        stages_ms: median milliseconds, stages that do not overlap.
        ttft_ms: median milliseconds to the first token, or None.
        gflop: 10^9 floating-point operations up to the first token, or None.
        peak_mib: MiB of memory at the peak, weights apart, or None.
        started: as in `Profile`.
    """

    label: str
    method: str
    budget: str
    num_visual: float
    stages_ms: Mapping[str, float]
    ttft_ms: float | None
    gflop: float | None
    peak_mib: float | None
    started: str | None

    @property
    def name(self) -> str:
        """Return method, parameters and budget."""
        return self.label if self.budget == "all" else f"{self.label} @ {self.budget}"


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs measured under the same conditions; a figure shows one such table.

    Attributes:
        backbone: its name.
        heading: on what they were measured.
        costs: the newest of each method and budget.
    """

    backbone: str
    heading: str
    costs: tuple[Cost, ...]


def retention_points(comparison: Comparison, row_intervals: RowIntervals | None = None) -> list[Point]:
    """Return average retention in percent against the share of visual tokens read, mean over layers, in percent."""
    total, points = unpruned_tokens(comparison), []
    for key, average in averages(comparison).items():
        read = tokens(comparison.rows[key])
        if total and read is not None:
            low, high = (row_intervals or {}).get(key, (None, None))
            at = 100 * read / total
            points.append(Point(key.label, key.method, at, average, low, high, key.budget.label))
    return points


def cost_tables(profiles: Iterable[Profile]) -> list[CostTable]:
    """Return the costs, one table per backbone, weights, machine, software, configuration and batch size."""
    return [_cost_table(group) for group in efficiency.groups(profiles)]


def _cost_table(group: Sequence[Profile]) -> CostTable:
    first = group[0]
    device = first.environment.get("gpu", first.environment.get("cpu", "unknown"))
    heading = f"{first.backbone}, {first.configuration}, batch size {first.batch_size}, on {device}"
    return CostTable(first.backbone, heading, tuple(_cost(profile) for profile in group))


def _cost(profile: Profile) -> Cost:
    times = {stage: median(values) for stage, values in profile.stages_ms.items() if values}
    stages = {stage: times[stage] for stage in TTFT_STAGES if stage in times}
    if "signals" in times and "reduce" in stages:  # a record's `reduce` includes them, its `encode` does not
        stages["reduce"] = max(0.0, stages["reduce"] - times["signals"])
        stages["signals"] = times["signals"]
    flops = profile.stages_flops.get("ttft")
    return Cost(
        label=profile.method + format_params(profile.params),
        method=profile.method,
        budget=profile.budget,
        num_visual=profile.num_visual,
        stages_ms=stages,
        ttft_ms=times.get("ttft"),
        gflop=None if flops is None else flops / 1e9,
        peak_mib=max(profile.peak_bytes.values()) / MIB if profile.peak_bytes else None,
        started=profile.started,
    )


def against_cost(
    comparison: Comparison, table: CostTable, quantity: str, row_intervals: RowIntervals | None = None
) -> list[Point]:
    """Return average retention in percent against a cost.

    Args:
        comparison: of the same backbone as the costs.
        table: costs of one machine.
        quantity: "ttft_ms", "gflop" or "peak_mib".
        row_intervals: intervals of the rows' retention.
    """
    costs = {(cost.label, cost.budget): getattr(cost, quantity) for cost in table.costs}
    points = []
    for key, average in averages(comparison).items():
        budget = key.budget.label
        at = costs.get((key.label, budget))
        if at is not None and comparison.cell["backbone"] == table.backbone:
            low, high = (row_intervals or {}).get(key, (None, None))
            points.append(Point(key.label, key.method, at, average, low, high, budget))
    return points


def front(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto front, cheapest first: points that no other point matches at the same or a lower cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.at, -point.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def scale_points(records: Iterable[Record], method: str) -> dict[str, dict[str, list[Point]]]:
    """Return a method's scores against the pruning rate, per benchmark and model: Figure A1 of the DiffPrune paper.

    The rate is the share removed in percent; the unpruned model is at 0.
    """
    scores: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for record in records:
        cell = record.cell
        plain = cell["method"] == "none" or (cell["method"] == method and cell["prune_rate"] is not None)
        if plain:
            scores[cell["task"], cell["backbone"], 100 * (cell["prune_rate"] or 0.0)].append(record.score)
    series: dict[str, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for (task, backbone, rate), values in sorted(scores.items()):
        series[task][backbone].append(Point(backbone, method, rate, mean(values)))
    curves = {task: {b: points for b, points in rows.items() if len(points) > 1} for task, rows in series.items()}
    return {task: rows for task, rows in curves.items() if rows}


def variant_points(comparison: Comparison) -> list[Point]:
    """Return retention per trained variant and budget, mean and 95 % interval over seeds (the paper's Table 5)."""
    if not ablation.is_ablation(comparison):
        return []
    return [
        Point(variant, variant, keep, pooled.value, *_ends(pooled), budget=str(keep))
        for variant, budgets in ablation.variants(comparison).items()
        for budget, pooled in budgets.items()
        if (keep := budget.keep) is not None
    ]


def _ends(pooled: ablation.Pooled) -> tuple[float | None, float | None]:
    return (None, None) if pooled.half is None else (pooled.value - pooled.half, pooled.value + pooled.half)
