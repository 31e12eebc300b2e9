"""The result of a comparison in three sentences, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpbench.report import counted, marks, retention, spending
from dpbench.report.figures.data import CostTable
from dpbench.report.intervals import SIGNIFICANT, Intervals
from dpbench.report.runs import Comparison, RowKey, largest_first, scores_of, unpruned_tokens


def sentences(comparison: Comparison, bootstrap: Intervals) -> tuple[str, ...]:
    """Return what was compared, the best at the smallest budget, and which differences are significant.

    Plain text. All averages are over the benchmarks that count, and the best are those that the tables mark; where no
    benchmark counts, the first sentence says so and is the only one.
    """
    if not counted.find(comparison).tasks:
        return (_describe_comparison(comparison),)
    return (
        _describe_comparison(comparison),
        _describe_best(comparison, bootstrap),
        _describe_significance(comparison, bootstrap),
    )


def _describe_comparison(comparison: Comparison) -> str:
    methods = {(key.method, key.params) for key in comparison.rows}
    budgets = {key.budget for key in comparison.rows if not key.budget.keeps_all}
    none, num_questions = comparison.find("none"), _count_questions(comparison)
    text = (
        f"{_count(len(methods), 'method')} at {_count(len(budgets), 'budget')} answered "
        f"{sum(num_questions.values()):,} questions of {_count(len(num_questions), 'benchmark')} on "
        f"{comparison.cell['backbone']}"
    )
    if none is None:
        return f"{text}; the unpruned model is not among them, so no method is ranked."
    scores, count = scores_of(comparison.rows[none]), counted.find(comparison)
    if not count.tasks:
        return f"{text}; none of them counts for retention, so no method is ranked."
    mean = sum(scores[name] for name in count.tasks) / len(count.tasks)
    return f"{text}, which unpruned scores {mean:.1f} of 100 ({count.scope})."


def _count_questions(comparison: Comparison) -> dict[str, int]:
    """Return the number of questions of every benchmark that was answered."""
    num_questions: dict[str, int] = {}
    for record in comparison.records:
        num_questions[record.cell["task"]] = max(record.num_samples, num_questions.get(record.cell["task"], 0))
    return num_questions


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _all(number: int) -> str:
    """Return words for all of at least two things: both, all 3."""
    return "both" if number == 2 else f"all {number}"


def _describe_best(comparison: Comparison, bootstrap: Intervals) -> str:
    averages = {k: v for k, v in retention.averages(comparison).items() if marks.takes_part(comparison, k)}
    if not averages:
        return "No pruned method is ranked: none keeps to its budget with a score on every benchmark that counts."
    budget = max((key.budget for key in averages), key=largest_first)
    same = {key: value for key, value in averages.items() if key.budget == budget}
    found = marks.rank(same)
    best = [key for key in same if found[key] == "best"] or list(same)
    interval = _format_interval(bootstrap.of_retention().get(best[0])) if len(best) == 1 else ""
    text = (
        f"{_format_budget(comparison, best[0])} {_name_best(best, len(same))} {same[best[0]]:.1f} % of the unpruned "
        f"scores ({interval}{counted.find(comparison).scope})"
    )
    random = comparison.find("random", budget)
    reference = retention.averages(comparison).get(random) if random else None
    return text + (f"; random tokens retain {reference:.1f} %." if reference is not None else ".")


def _name_best(best: Sequence[RowKey], num_ranked: int) -> str:
    """Return who retains most as the marks have it: one row, rows that print the same number, or all of them."""
    if len(best) == 1:
        return f"{best[0].label} retains {'most: ' if num_ranked > 1 else ''}".rstrip()
    if len(best) == num_ranked:
        return f"{_all(num_ranked)} methods retain the same:"
    names = ", ".join(key.label for key in best[:-1])
    return f"{names} and {best[-1].label} tie and retain most:"


def _format_budget(comparison: Comparison, key: RowKey) -> str:
    total = unpruned_tokens(comparison)
    keep, rate = key.budget.keep, key.budget.prune_rate
    if keep is None:
        return f"At a pruning rate of {100 * (rate or 0):.1f} %,"
    return f"At {keep}{f' of {total:.0f}' if total else ''} visual tokens,"


def _format_interval(ends: tuple[float, float] | None) -> str:
    return f"95 % interval {ends[0]:.1f} to {ends[1]:.1f}; " if ends else ""


def _describe_significance(comparison: Comparison, bootstrap: Intervals) -> str:
    tallies = {
        name: _tally(comparison, bootstrap, reference)
        for reference, name in (("random", "random tokens"), ("none", "the unpruned model"))
    }
    said = "; ".join(f"against {name}: {tally.text}" for name, tally in tallies.items() if tally.num)
    if not said:
        return "No retention has an interval here, so small differences may be noise."
    most = max(tallies.values(), key=lambda tally: tally.num)
    alike = "; alike: cannot be told apart" if any(tally.alike for tally in tallies.values()) else ""
    left_out = f" Left out: {_count(most.num_over, 'row')} that read more than the budget." if most.num_over else ""
    return f"{_count(most.num, 'pruned row')} {said} (at 95 %, Holm-corrected{alike}).{left_out}"


@dataclass(frozen=True, slots=True)
class _Tally:
    """How the retention of pruned rows, those of `random` aside, compares with a reference; numbers of rows."""

    better: int
    alike: int
    worse: int
    num_over: int

    @property
    def num(self) -> int:
        """Return the rows that are compared: without those that read more than their budget."""
        return self.better + self.alike + self.worse

    @property
    def text(self) -> str:
        """Return the counts in the words of the tables: 28 better, 4 alike, 16 worse; or all 48 worse."""
        counts = {"better": self.better, "alike": self.alike, "worse": self.worse}
        if self.num > 1 and self.num in counts.values():
            return f"{_all(self.num)} {next(word for word, num in counts.items() if num)}"
        return ", ".join(f"{num} {word}" for word, num in counts.items() if num)


def _tally(comparison: Comparison, bootstrap: Intervals, reference: str) -> _Tally:
    compared = {
        key: p for key, p in bootstrap.corrected(reference, of_retention=True).items() if key[0].method != "random"
    }
    within = [key for key in compared if not spending.overspends(comparison, key[0])]
    clear = [bootstrap.differences[key].value for key in within if compared[key] < SIGNIFICANT]
    better = sum(value > 0 for value in clear)
    return _Tally(better, len(within) - len(clear), len(clear) - better, len(compared) - len(within))


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
