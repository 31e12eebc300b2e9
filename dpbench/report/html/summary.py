"""The result of a comparison in three sentences."""

from __future__ import annotations

from collections.abc import Sequence

from dpbench.report.figures.data import CostTable, retention_intervals, retentions
from dpbench.report.intervals import SIGNIFICANT, Intervals
from dpbench.report.runs import Comparison, RowKey, largest_first, unpruned_tokens
from dpbench.report.tables.scores import RETENTION, scores_of


def sentences(comparison: Comparison, intervals: Intervals) -> tuple[str, str, str]:
    """Return what was compared, the best method at the smallest budget, and which differences are significant."""
    return (
        _describe_comparison(comparison),
        _describe_best(comparison, intervals),
        _describe_significance(comparison, intervals),
    )


def _describe_comparison(comparison: Comparison) -> str:
    methods = {(key.method, key.params) for key in comparison.rows}
    budgets = {key.budget for key in comparison.rows if not key.budget.keeps_all}
    tasks, none = comparison.tasks, comparison.find("none")
    num_questions = _count_questions(comparison)
    total = sum(num_questions.values())
    text = (
        f"{_count(len(methods), 'method')} at {_count(len(budgets), 'budget')} answered {total:,} "
        f"questions of {_count(len(num_questions), 'benchmark')} on {comparison.cell['backbone']}"
    )
    if none is None or set(scores_of(comparison.rows[none])) != set(tasks):
        return f"{text}; the unpruned model is not among them, so there is no retention."
    scores = scores_of(comparison.rows[none])
    return f"{text}, which unpruned scores {sum(scores.values()) / len(scores):.1f} of 100 on average."


def _count_questions(comparison: Comparison) -> dict[str, int]:
    """Return the number of questions of every benchmark that was answered."""
    num_questions: dict[str, int] = {}
    for record in comparison.records:
        num_questions[record.cell["task"]] = max(record.num_samples, num_questions.get(record.cell["task"], 0))
    return num_questions


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _describe_best(comparison: Comparison, intervals: Intervals) -> str:
    averages = {key: value for key, value in retentions(comparison).items() if key.method != "none"}
    if not averages:
        return "No pruned method has a score on every benchmark yet, so none is ranked."
    budget = max((key.budget for key in averages), key=largest_first)
    same = {key: value for key, value in averages.items() if key.budget == budget}
    best = max(same, key=lambda key: same[key])
    random = comparison.find("random", budget)
    text = f"{_format_budget(comparison, best)} {best.label} retains most: {same[best]:.1f} % of the unpruned scores"
    text += _format_interval(retention_intervals(intervals).get(best))
    return text + (f"; random tokens retain {same[random]:.1f} %." if random in same and random != best else ".")


def _format_budget(comparison: Comparison, key: RowKey) -> str:
    total = unpruned_tokens(comparison)
    keep, rate = key.budget.keep, key.budget.prune_rate
    if keep is None:
        return f"At a pruning rate of {100 * (rate or 0):.1f} %,"
    return f"At {keep}{f' of {total:.0f}' if total else ''} visual tokens,"


def _format_interval(ends: tuple[float, float] | None) -> str:
    return f" (95 % interval {ends[0]:.1f} to {ends[1]:.1f})" if ends else ""


def _describe_significance(comparison: Comparison, intervals: Intervals) -> str:
    against = intervals.corrected("random", of_retention=True)
    if not against:
        return "No retention has an interval here, so small differences may be noise."
    alike = len(intervals.like_random())
    above = [key for key, p in against.items() if p < SIGNIFICANT and intervals.differences[key].value > 0]
    below = len(against) - alike - len(above)
    lossless = [
        key[0].label
        for key, p in intervals.corrected("none", of_retention=True).items()
        if p >= SIGNIFICANT and key[2] == RETENTION
    ]
    equal = f"{_count(len(lossless), 'row')} cannot be told from the unpruned model" if lossless else (
        "every row measurably loses against the unpruned model or gains on it"
    )  # fmt: skip
    return (
        f"Of {_count(len(against), 'pruned row')}, {len(above)} beat random tokens, {alike} cannot be told from them "
        f"and {below} do worse (95 %, Holm-corrected), and {equal}."
    )


def cost_sentence(table: CostTable) -> str | None:
    """Return a sentence on the fastest method of those timed in turn with `none`; None if there is none."""
    none = next((cost for cost in table.costs if cost.method == "none" and cost.ttft_ms), None)
    in_turn = [cost for cost in table.costs if none and cost.started == none.started]
    timed = {cost.name: cost.ttft_ms for cost in in_turn if cost.ttft_ms}
    if none is None or len(timed) < 2:
        return None
    name, fastest = min(timed.items(), key=lambda item: item[1])
    return (
        f"{name} is the fastest to the first token, {fastest:.1f} ms against {timed[none.name]:.1f} ms unpruned "
        f"({timed[none.name] / fastest:.2f} times as fast; {table.heading})."
    )


def profile_sentences(tables: Sequence[CostTable]) -> tuple[str, ...]:
    """Return one sentence per cost table that has something to compare."""
    return tuple(text for table in tables if (text := cost_sentence(table)))
