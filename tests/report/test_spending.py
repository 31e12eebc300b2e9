"""Rows that read more than their budget: decided by what was read, whatever a method declares."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_record

from dpbench.budget import tolerance
from dpbench.report import groups, runs, spending
from dpbench.report.runs import Comparison, Run
from dpbench.storage.record import Record


def test_the_tolerance_is_half_a_token_or_one_percent() -> None:
    assert (tolerance(16), tolerance(50), tolerance(192)) == (0.5, 0.5, 1.92)


def row(method: str, layers: tuple[float, ...], keep: int | None = 16, task: str = "vqav2", **cell: object) -> Record:
    return replace(make_record(method, keep, task, 50.0, **cell), visual_tokens_per_layer=layers)


def compared(*records: Record) -> Comparison:
    (one,) = runs.comparisons([Run(Path("nowhere"), records, ())])
    return one


def overspends(*records: Record) -> dict[str, bool]:
    one = compared(*records)
    return {key.method: spending.overspends(one, key) for key in one.rows}


@pytest.mark.parametrize(("read", "over"), [(15.0, False), (16.0, False), (16.5, False), (16.6, True), (17.0, True)])
def test_more_than_the_tolerance_above_a_count_overspends(read: float, over: bool) -> None:
    assert overspends(row("holov", (read, read))) == {"holov": over}


def test_the_mean_over_layers_counts_or_what_is_left_at_the_end() -> None:
    layers = (64.0, 8.0, 8.0, 8.0)
    assert overspends(row("fastv", layers, 22)) == {"fastv": False}
    assert overspends(row("fastv", layers, 21)) == {"fastv": True}
    assert overspends(row("fastv", layers, 8, budget_kind="final")) == {"fastv": False}
    assert overspends(row("fastv", layers, 7, budget_kind="final")) == {"fastv": True}


def test_a_rate_is_of_what_the_unpruned_model_reads_on_the_same_benchmarks() -> None:
    """A quarter of 144 is 36; of the mean of both benchmarks, 572, it would be 143."""
    small, large = row("none", (144.0,), None), row("none", (1000.0,), None, "gqa")
    kept = row("holov", (36.0,), None, prune_rate=0.75)
    assert overspends(small, large, kept) == {"none": False, "holov": False}
    assert overspends(small, large, row("holov", (37.0,), None, prune_rate=0.75))["holov"]
    assert not overspends(kept)["holov"]  # without the unpruned model the budget is not known


def test_rows_that_overspend_have_a_group_of_their_own_behind_their_budgets() -> None:
    rows = [row("none", (144.0,), None), row("a", (17.0,)), row("b", (16.0,)), row("c", (33.0,), 32)]
    one = compared(*rows)
    assert [(title, [key.method for key in keys]) for title, keys in groups.groups(one, one.rows)] == [
        ("Unpruned, 144 visual tokens (100 %)", ["none"]),
        ("Read more than their budget: Keep 32 visual tokens (77.8 % pruned)", ["c"]),
        ("Keep 16 visual tokens (88.9 % pruned)", ["b"]),
        ("Read more than their budget: Keep 16 visual tokens (88.9 % pruned)", ["a"]),
    ]


def test_the_reason_has_both_numbers() -> None:
    one = compared(row("a", (17.0,)))
    assert spending.explain(one, next(iter(one.rows))) == (
        "reads 17.0 visual tokens of a budget of 16; takes no part in the ranking"
    )
