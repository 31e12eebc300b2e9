"""The hard subset: wrong for the smaller image, right unpruned, scored by the real aggregator."""

from pathlib import Path

import pytest
from made_records import make_answer, make_record, write_run

from dpbench.budget import BudgetRequest
from dpbench.errors import ConfigError
from dpbench.report import runs
from dpbench.report.runs import Comparison, RowKey
from dpbench.report.tables import hard_subset
from dpbench.storage.journal import Answer
from dpbench.tasks import aggregators


def journal(rights: str) -> list[Answer]:
    return [make_answer("gqa", at, f"image {at}", {"exact_match": float(each)}) for at, each in enumerate(rights)]


def compared(folder: Path, rows: dict[str, str], keep: int = 16) -> Comparison:
    records, journals = [], {}
    for method, rights in rows.items():
        each = make_record(method, None if method == "none" else keep, "gqa", 100 * rights.count("1") / len(rights))
        records.append(each)
        journals[each.cell_id] = journal(rights)
    (one,) = runs.comparisons([runs.load(write_run(folder, records, journals))])
    return one


ROWS = {
    "none": "11110",
    "downsample": "10010",  # questions 1 and 2 are hard
    "grid": "01000",
    "holov": "01101",
}


def test_hard_scores_by_hand(tmp_path: Path) -> None:
    found = hard_subset.scores(compared(tmp_path, ROWS))
    assert found[RowKey(BudgetRequest(keep=16), "grid", "{}")]["gqa"] == hard_subset.Hard(50.0, 2)
    assert found[RowKey(BudgetRequest(keep=16), "holov", "{}")]["gqa"] == hard_subset.Hard(100.0, 2)
    assert {key.method for key in found} == {"grid", "holov"}


def test_hard_stands_beside_full(tmp_path: Path) -> None:
    section = hard_subset.section(compared(tmp_path, ROWS))
    texts = [[cell.text for cell in row.cells] for row in section.rows]
    assert texts[1:] == [["hard questions", "2"], ["grid", "50.0 / 20.0"], ["holov", "100.0 / 60.0"]]


@pytest.mark.parametrize("absent", ["none", "downsample"])
def test_what_chooses_the_subset_must_be_there(absent: str, tmp_path: Path) -> None:
    rows = {method: rights for method, rights in ROWS.items() if method != absent}
    with pytest.raises(ConfigError, match=f"no cell of method {absent}"):
        hard_subset.section(compared(tmp_path, rows))


def test_without_samples_there_is_no_subset(tmp_path: Path) -> None:
    records = [make_record(method, None if method == "none" else 16, "gqa", 50.0) for method in ROWS]
    (one,) = runs.comparisons([runs.load(write_run(tmp_path, records))])
    with pytest.raises(ConfigError, match=r"nothing to choose from: No intervals: there is no contributions.npz"):
        hard_subset.section(one)


def test_where_nothing_is_hard_there_is_a_sentence(tmp_path: Path) -> None:
    one = compared(tmp_path, {"none": "11", "downsample": "11", "grid": "10"})
    with pytest.raises(ConfigError, match="downsample gets no question wrong"):
        hard_subset.section(one)


def test_of_an_f1_the_hard_score_is_the_share_of_right_answers(tmp_path: Path) -> None:
    """A right no adds nothing to an F1: of the two hard questions, a yes and a no, grid has the no."""
    truths = ("yes", "no", "yes", "no")
    said = {"none": truths, "downsample": ("no", "yes", "yes", "no"), "grid": ("no", "no", "no", "yes")}
    records, journals = [], {}
    for method, words in said.items():
        found = [
            {"pope_f1_score": {"prediction": word, "ground_truth": truth}}
            for word, truth in zip(words, truths, strict=True)
        ]
        score = 100 * aggregators.metrics("pope", found)["pope_f1_score"]
        records.append(make_record(method, None if method == "none" else 16, "pope", score))
        journals[records[-1].cell_id] = [make_answer("pope", at, f"image {at}", each) for at, each in enumerate(found)]
    (one,) = runs.comparisons([runs.load(write_run(tmp_path, records, journals))])
    scores = hard_subset.scores(one)[RowKey(BudgetRequest(keep=16), "grid", "{}")]
    assert scores == {"pope": hard_subset.Hard(50.0, 2)}
    assert "POPE: the hard score is the share of right answers, the full score F1." in hard_subset.section(one).notes
