"""Best and second: ties share a mark, what tells nothing is dropped, and references never get one."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_record

from dpbench.report import marks, runs
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables.scores import row_values
from dpbench.storage.record import Record


@pytest.mark.parametrize(
    ("values", "best", "second"),
    [
        ({"a": 3.0, "b": 2.0, "c": 1.0}, "a", "b"),
        ({"a": 3.04, "b": 3.01, "c": 2.0, "d": 1.0}, "ab", "c"),  # both print 3.0
        ({"a": 3.0, "b": 2.04, "c": 2.01, "d": 1.0}, "a", "bc"),
        ({"a": 3.0, "b": 2.0}, "a", ""),  # second of two tells nothing
        ({"a": 3.0, "b": 2.0, "c": 2.0}, "a", ""),  # nor does a second that all the others are
        ({"a": 3.0, "b": 3.0, "c": 2.0}, "ab", ""),
        ({"a": 3.0, "b": 3.0}, "", ""),
        ({"a": 3.0}, "", ""),
        ({"a": 3.0, "b": None, "c": float("nan")}, "", ""),
        ({}, "", ""),
    ],
)
def test_marks_follow_the_printed_number(values: dict[str, float | None], best: str, second: str) -> None:
    found = marks.rank(values)
    assert "".join(name for name, mark in found.items() if mark == "best") == best
    assert "".join(name for name, mark in found.items() if mark == "second") == second
    assert set(found) == set(values)


def test_digits_are_those_of_the_table() -> None:
    assert marks.rank({"a": 3.04, "b": 3.01, "c": 1.0}, 2) == {"a": "best", "b": "second", "c": ""}


def compared(*records: Record) -> Comparison:
    (one,) = runs.comparisons([Run(Path("nowhere"), records, ())])
    return one


def row(method: str, score: float, keep: int | None = 16, tokens: float | None = None) -> Record:
    made = replace(make_record(method, keep, "vqav2", score), num_samples=80)
    return made if tokens is None else replace(made, visual_tokens_per_layer=(tokens, tokens))


def marked(comparison: Comparison) -> dict[str, str]:
    column = marks.of(comparison, row_values(comparison))["vqav2"]
    return {f"{key.method} {key.budget.label}": mark for key, mark in column.items() if mark}


def test_references_get_no_mark_and_keep_nobody_from_one() -> None:
    scores = {"random": 60.0, "grid": 70.0, "holov": 50.0, "fastv": 40.0, "dart": 30.0}
    one = compared(row("none", 80.0, None), *(row(*each) for each in scores.items()))
    assert marked(one) == {"holov 16": "best", "fastv 16": "second"}


def test_each_budget_has_its_own() -> None:
    ranked = (("holov", 50.0, 16), ("fastv", 40.0, 16), ("holov", 30.0, 8), ("fastv", 45.0, 8))
    one = compared(row("none", 80.0, None), *(row(*each) for each in ranked))
    assert marked(one) == {"holov 16": "best", "fastv 8": "best"}


def test_a_row_that_overspends_gets_none() -> None:
    rows = row("none", 80.0, None), row("holov", 70.0, 16, 17.0), row("fastv", 40.0), row("dart", 30.0)
    assert marked(compared(*rows)) == {"fastv 16": "best"}


def test_a_row_with_fewer_benchmarks_gets_none() -> None:
    more = [replace(row(method, score, keep), cell={**row(method, score, keep).cell, "task": "gqa"})
            for method, score, keep in (("none", 80.0, None), ("fastv", 40.0, 16), ("dart", 30.0, 16))]  # fmt: skip
    rows = row("none", 80.0, None), row("holov", 70.0), row("fastv", 40.0), row("dart", 30.0)
    assert marked(compared(*rows, *more)) == {"fastv 16": "best"}
