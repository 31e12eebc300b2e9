"""Rows with several seeds show how far their numbers spread, if they do."""

from pathlib import Path
from statistics import stdev

import pytest
from made_records import make_record

from dpbench.report import runs
from dpbench.report.runs import Run
from dpbench.report.tables import scores
from dpbench.report.tables.scores import RETENTION
from dpbench.report.tables.table import Section

POPE, GQA = (60.0, 64.0, 68.0), (40.0, 41.0, 39.0)
"""Scores of `random` under three seeds, of 80 and 50 unpruned."""


def table(*, pope: tuple[float, ...] = POPE, gqa: tuple[float, ...] = GQA) -> Section:
    records = [make_record("none", None, "pope", 80.0), make_record("none", None, "gqa", 50.0)]
    for task, values in (("pope", pope), ("gqa", gqa)):
        records += [make_record("random", 16, task, value, seed=seed) for seed, value in enumerate(values)]
        records.append(make_record("grid", 16, task, 30.0))
    (one,) = runs.comparisons([Run(Path("a run"), tuple(records), ())])
    return scores.section(one)


def printed(section: Section) -> dict[str, str]:
    """Return what the last column prints, by method."""
    return {row.cells[0].text: row.cells[-1].text for row in section.rows if row.kind == "data"}


def test_the_retention_has_its_standard_deviation_over_seeds() -> None:
    retentions = [100 * (pope / 80 + gqa / 50) / 2 for pope, gqa in zip(POPE, GQA, strict=True)]
    section = table()
    assert printed(section)["random"] == f"{sum(retentions) / 3:.1f} ± {stdev(retentions):.1f}"
    assert "±" not in printed(section)["grid"]
    frame = section.frame.set_index("Method")
    assert frame.loc["random", f"{RETENTION} deviation"] == pytest.approx(stdev(retentions))


def test_the_notes_say_how_many_seeds_and_where_one_score_spreads_most() -> None:
    notes = table().notes
    assert "Mean over 3 seeds where there are as many." in notes
    assert (
        "± after a retention: standard deviation over seeds; of a single score up to 4.0 (POPE, random at 16)." in notes
    )


def test_a_method_that_draws_nothing_has_no_spread() -> None:
    section = table(pope=(60.0, 60.0), gqa=(40.0, 40.0))
    assert printed(section)["random"] == "77.5"
    assert not any("±" in note for note in section.notes)
    assert f"{RETENTION} deviation" not in section.frame


def test_a_seed_without_every_benchmark_takes_no_part() -> None:
    retentions = [100 * (pope / 80 + gqa / 50) / 2 for pope, gqa in zip(POPE[:2], GQA[:2], strict=True)]
    assert printed(table(gqa=GQA[:2]))["random"].endswith(f"± {stdev(retentions):.1f}")
