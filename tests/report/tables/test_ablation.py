"""The ablation table pools the seeds of each way to train the scorer."""

from pathlib import Path

import pytest
from made_records import make_record
from scipy.stats import t

from dpbench.budget import BudgetRequest
from dpbench.report import runs
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables import ablation


def compared(scores: dict[str, list[float]]) -> Comparison:
    records = [make_record("none", None, "pope", 80.0), make_record("random", 16, "pope", 40.0)]
    for variant, values in scores.items():
        for seed, score in enumerate(values):
            records.append(
                make_record("diffprune", 16, "pope", score, params={"checkpoint": f"any/where/{variant}-{seed}"})
            )
    (one,) = runs.comparisons([Run(Path("run"), tuple(records), ())])
    return one


def test_seeds_are_pooled_with_students_interval() -> None:
    one = compared({"diffprune": [72.0, 76.0, 80.0], "scale-gate": [60.0]})
    found = ablation.variants(one)
    pooled = found["diffprune"][BudgetRequest(keep=16)]
    assert (pooled.value, pooled.num_seeds) == (95.0, 3)
    assert pooled.half == pytest.approx(t.ppf(0.975, 2) * 5 / 3**0.5)
    assert found["scale-gate"][BudgetRequest(keep=16)] == ablation.Pooled(75.0, None, 1)


def test_the_table_says_which_and_how_many() -> None:
    section = ablation.section(compared({"diffprune": [72.0, 76.0, 80.0], "scale-gate": [60.0]}))
    assert section.columns == ("Variant", "Keep 16")
    assert [[cell.text for cell in row.cells] for row in section.rows] == [
        ["diffprune", "95.0 ± 12.4"],
        ["scale-gate", "75.0"],
    ]
    assert section.rows[0].cells[1].mark == "best"
    assert section.frame["Seeds"].tolist() == [3, 1]


def test_one_scorer_is_no_ablation() -> None:
    assert ablation.is_ablation(compared({"diffprune": [1.0], "scale-gate": [1.0]}))
    assert not ablation.is_ablation(compared({"diffprune": [1.0, 2.0]}))
    assert not ablation.is_ablation(compared({}))
