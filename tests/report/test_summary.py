"""The three sentences: computed from the benchmarks that count, in agreement with the marks, ties said as ties."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_record

from dpbench.budget import BudgetRequest
from dpbench.report import runs, summary
from dpbench.report.intervals import Intervals
from dpbench.report.retention import RETENTION
from dpbench.report.runs import Comparison, RowKey, Run
from dpbench.report.statistics import Difference
from dpbench.storage.record import Record

NONE = ("none", None, 80.0)


def row(method: str, keep: int | None, score: float, task: str = "vqav2", num_samples: int = 80) -> Record:
    return replace(make_record(method, keep, task, score), num_samples=num_samples)


def compared(*records: Record) -> Comparison:
    (one,) = runs.comparisons([Run(Path("nowhere"), records, ())])
    return one


def best(*scores: tuple[str, float], bootstrap: Intervals | None = None) -> str:
    one = compared(row(*NONE), *(row(method, 16, score) for method, score in scores))
    return summary.sentences(one, bootstrap or Intervals({}))[1]


def test_what_was_compared_over_the_benchmarks_that_count() -> None:
    """GQA's 10 questions are answered but not averaged."""
    few = [row(*NONE[:2], 10.0, "gqa", 10), row("holov", 16, 20.0, "gqa", 10)]
    one = compared(row(*NONE), row("holov", 16, 40.0), *few)
    assert summary.sentences(one, Intervals({})) == (
        "2 methods at 1 budget answered 90 questions of 2 benchmarks on toy-llava, which unpruned scores 80.0 of 100 "
        "(mean of 1 of 2 benchmarks).",
        "At 16 of 144 visual tokens, holov retains 50.0 % of the unpruned scores (mean of 1 of 2 benchmarks).",
        "No retention has an interval here, so small differences may be noise.",
    )


def test_without_an_average_the_sentence_says_why() -> None:
    few, unfinished = compared(row("none", None, 80.0, num_samples=10)), compared(row("holov", 16, 40.0))
    for one, why in ((few, "none of them counts for retention"), (unfinished, "the unpruned model is not among them")):
        (said,) = summary.sentences(one, Intervals({}))
        assert said.endswith(f"; {why}, so no method is ranked.")


def test_rows_without_a_score_on_a_benchmark_that_counts_are_not_ranked() -> None:
    one = compared(row(*NONE), row("none", None, 80.0, "textvqa"), row("holov", 16, 40.0))
    assert summary.sentences(one, Intervals({}))[1].startswith("No pruned method is ranked:")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([("holov", 40.0), ("fastv", 20.0)], "holov retains most: 50.0 %"),
        ([("holov", 40.0), ("fastv", 40.02), ("dart", 20.0)], "fastv and holov tie and retain most: 50.0 %"),
        ([("a", 40.0), ("b", 40.0), ("c", 40.0), ("d", 8.0)], "a, b and c tie and retain most: 50.0 %"),
        ([("holov", 40.0), ("fastv", 40.0)], "both methods retain the same: 50.0 %"),
        ([("holov", 40.0)], "holov retains 50.0 %"),
    ],
)
def test_the_best_is_who_the_marks_say(scores: Sequence[tuple[str, float]], said: str) -> None:
    assert best(*scores) == (f"At 16 of 144 visual tokens, {said} of the unpruned scores (mean of 1 of 1 benchmark).")


def test_references_are_never_the_best_but_random_is_compared() -> None:
    assert best(("random", 72.0), ("grid", 76.0), ("holov", 40.0), ("fastv", 20.0)) == (
        "At 16 of 144 visual tokens, holov retains most: 50.0 % of the unpruned scores (mean of 1 of 1 benchmark); "
        "random tokens retain 90.0 %."
    )


def test_a_row_that_overspends_is_not_the_best() -> None:
    over = replace(row("holov", 16, 79.0), visual_tokens_per_layer=(17.0, 17.0))
    one = compared(row(*NONE), over, row("fastv", 16, 40.0), row("dart", 16, 20.0))
    assert "fastv retains most: 50.0 %" in summary.sentences(one, Intervals({}))[1]


def test_rows_that_overspend_are_left_out_of_those_that_beat_random() -> None:
    over = replace(row("holov", 16, 79.0), visual_tokens_per_layer=(17.0, 17.0))
    one = compared(row(*NONE), over, row("random", 16, 20.0), row("fastv", 16, 40.0))
    better, worse = Difference(20.0, 10.0, 30.0, 0.001), Difference(-20.0, -30.0, -10.0, 0.001)
    keys = {key.method: key for key in one.rows}
    bootstrap = Intervals(
        {(keys[method], "random", RETENTION): better for method in ("holov", "fastv")}
        | {(keys["fastv"], "none", RETENTION): worse}
    )
    assert summary.sentences(one, bootstrap)[2] == (
        "1 pruned row against random tokens: 1 better; against the unpruned model: 1 worse (at 95 %, Holm-corrected). "
        "Left out: 1 row that read more than the budget."
    )


METHODS = ("holov", "fastv", "dart")
NOISE, GAIN, LOSS = Difference(1.0, -9.0, 9.0, 0.8), Difference(9.0, 8.0, 9.5, 1e-4), Difference(-9.0, -9.5, -8.0, 1e-4)


@pytest.mark.parametrize(
    ("to_random", "to_none", "said"),
    [
        (
            (GAIN, NOISE, LOSS),
            (LOSS, LOSS, LOSS),
            "3 pruned rows against random tokens: 1 better, 1 alike, 1 worse; against the unpruned model: all 3 worse "
            "(at 95 %, Holm-corrected; alike: cannot be told apart).",
        ),
        (
            (GAIN, GAIN, GAIN),
            (LOSS, NOISE, GAIN),
            "3 pruned rows against random tokens: all 3 better; against the unpruned model: 1 better, 1 alike, 1 worse "
            "(at 95 %, Holm-corrected; alike: cannot be told apart).",
        ),
        ((), (LOSS, LOSS), "2 pruned rows against the unpruned model: both worse (at 95 %, Holm-corrected)."),
        ((), (), "No retention has an interval here, so small differences may be noise."),
    ],
)
def test_rows_are_counted_against_random_and_the_unpruned_model(
    to_random: Sequence[Difference], to_none: Sequence[Difference], said: str
) -> None:
    """The row of `random` itself is not among those counted against the unpruned model."""
    rows = [row(method, 16, 40.0) for method in (*METHODS, "random")]
    one = compared(row(*NONE), *rows)
    keys = {key.method: key for key in one.rows}
    found = {(keys[m], "random", RETENTION): d for m, d in zip(METHODS, to_random, strict=False)}
    found |= {(keys[m], "none", RETENTION): d for m, d in zip(METHODS, to_none, strict=False)}
    found |= {(keys["random"], "none", RETENTION): LOSS}
    assert summary.sentences(one, Intervals(found if to_none else {}))[2] == said


def test_the_interval_is_that_of_the_difference_to_the_unpruned_model() -> None:
    key = RowKey(BudgetRequest(keep=16), "holov", "{}")
    bootstrap = Intervals({(key, "none", RETENTION): Difference(-50.0, -60.0, -41.5, 0.001)})
    assert "holov retains most: 50.0 % of the unpruned scores (95 % interval 40.0 to 58.5; mean of 1 of 1" in best(
        ("holov", 40.0), ("fastv", 20.0), bootstrap=bootstrap
    )
