"""The ablation table pools the seeds of each way to train the scorer."""

import json
from pathlib import Path

import pytest
from made_records import make_record
from scipy.stats import t

from dpbench.budget import BudgetRequest
from dpbench.errors import RecordError
from dpbench.report import runs
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables import ablation, ablation_pairs


def compared(scores: dict[str, list[float]], folder: Path = Path("run")) -> Comparison:
    records = [make_record("none", None, "pope", 80.0), make_record("random", 16, "pope", 40.0)]
    for variant, values in scores.items():
        for seed, score in enumerate(values):
            records.append(
                make_record("diffprune", 16, "pope", score, params={"checkpoint": f"any/where/{variant}-{seed}"})
            )
    (one,) = runs.comparisons([Run(folder, tuple(records), ())])
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


def write_trainings(folder: Path, **losses: list[float]) -> None:
    cards = [
        {"scorer": f"{name.replace('_', '-')}-{seed}", "losses": {"full": 0.0, "hard": loss}}
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    (folder / "trainings.jsonl").write_text("".join(json.dumps(card) + "\n" for card in cards))


def test_variants_are_compared_seed_by_seed_and_the_control_is_chosen_by_validation_loss(tmp_path: Path) -> None:
    """DiffPrune is 8 points of 80 above at every seed, so the interval has no width, though the scores scatter."""
    write_trainings(
        tmp_path, diffprune=[0.1, 0.3], gumbel_ste=[1.0, 1.2], gumbel_ste_mean=[0.9, 1.0], scale_gate=[0.5, 0.5]
    )
    scores = {"diffprune": [48.0, 72.0], "gumbel-ste": [40.0, 64.0], "gumbel-ste-mean": [40.0, 60.0]}
    (section,) = ablation_pairs.sections(compared(scores, tmp_path))
    half = t.ppf(0.975, 1) * (5 / 2**0.5) / 2**0.5
    assert [[cell.text for cell in row.cells] for row in section.rows] == [
        ["gumbel-ste", "10.0 ± 0.0", "1.100"],
        ["gumbel-ste-mean", f"12.5 ± {half:.1f}", "0.950"],
    ]
    assert [row.cells[0].refs for row in section.rows] == [(), ("*",)]
    assert section.frame["Control"].tolist() == [False, True]


def test_without_cards_no_control_is_named_and_without_pairs_there_is_no_table(tmp_path: Path) -> None:
    (section,) = ablation_pairs.sections(compared({"diffprune": [1.0, 2.0], "scale-gate": [1.0, 1.0]}, tmp_path))
    assert section.columns == ("DiffPrune minus", "16")
    assert ablation_pairs.sections(compared({"diffprune": [1.0, 2.0], "scale-gate": [1.0]}, tmp_path)) == []
    assert ablation_pairs.sections(compared({"gumbel-ste": [1.0, 2.0], "scale-gate": [1.0, 1.0]}, tmp_path)) == []


def test_a_damaged_card_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "trainings.jsonl").write_text('{"scorer": "a-0", "losses": {"hard": 1}}\n{"scorer": 3}\n')
    with pytest.raises(RecordError, match=r"trainings.jsonl:2: not the card of a training"):
        ablation_pairs.validation_losses([tmp_path])
