"""Theirs, ours, the difference, and what can explain it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_records import make_profile, make_record

from dpbench.report import runs
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables import ours_beside_published
from dpbench.report.tables.table import Section
from dpbench.storage.record import Record

LLAVA: dict[str, Any] = {"backbone": "llava-1.5", "prompt": "vicuna_v1", "dtype": "float16", "ocr": True, "limit": None}


def row(method: str, keep: int | None, task: str, score: float, **cell: Any) -> Record:
    each = make_record(method, keep, task, score, **{**LLAVA, **cell})
    each = replace(each, visual_tokens_per_layer=(float(keep or 576),) * 2)
    return replace(each, environment={"device": "cuda", "gpu": "NVIDIA RTX A6000", "cpu": "any"})


RECORDS = [
    row("none", None, "gqa", 62.0),
    row("none", None, "pope", 86.0),
    row("diffprune", 64, "gqa", 57.0),
    row("diffprune", 64, "pope", 83.0),
]


def compared(records: list[Record]) -> Comparison:
    (one,) = runs.comparisons([Run(Path("run"), tuple(records), ())])
    return one


def lines(section: Section, name: str, group: str = "") -> list[list[str]]:
    """Return what a row and the two below it say."""
    texts = [[cell.text for cell in each.cells] for each in section.rows]
    start = next(at for at, each in enumerate(texts) if group in each[0]) if group else 0
    at = next(at for at, each in enumerate(texts) if at >= start and each[0] == name)
    return texts[at : at + 3]


def test_theirs_ours_and_the_difference() -> None:
    section = ours_beside_published.scores(compared(RECORDS))
    at = section.columns.index("GQA")
    theirs, ours, apart = lines(section, "DiffPrune", "Retain 64")
    assert [theirs[1], ours[1], apart[1]] == ["paper", "ours", "difference"]
    assert [theirs[at], ours[at], apart[at]] == ["56.8", "57.0", "+0.2"]


def test_our_average_is_over_what_both_have() -> None:
    section = ours_beside_published.scores(compared(RECORDS))
    _, ours, apart = lines(section, "DiffPrune", "Retain 64")
    average = (57 / 62 + 83 / 86) / 2 * 100
    assert ours[-1] == f"{average:.1f}"
    assert apart[-1] == f"{average - 96.5:+.1f}"


def test_a_row_we_do_not_have_is_theirs_alone() -> None:
    section = ours_beside_published.scores(compared(RECORDS))
    assert [each[1] for each in lines(section, "HoloV", "Retain 64")][1] == "paper"
    frame = section.frame.set_index(["Row", "Group", "Column"])
    assert frame["Ours"].isna().loc["HoloV", "Retain 64 tokens (88.9 % pruning)", "GQA"]


def test_the_same_protocol_explains_nothing() -> None:
    notes = ours_beside_published.scores(compared(RECORDS)).notes
    assert [note for note in notes if "May explain" in note and "attention" not in note] == []
    assert "May explain it: attention: theirs not stated, ours sdpa." in notes


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"prompt": "template"}, "May explain it: prompt: theirs vicuna_v1"),
        ({"ocr": False}, "May explain it (column TextVQA): ocr: theirs True"),
        ({"dtype": "bfloat16"}, "May explain it: dtype: theirs float16"),
        ({"limit": 30}, "May explain it: samples: theirs all, ours 30 a benchmark."),
        ({"backbone": "toy-llava"}, "May explain it: model: theirs LLaVA-1.5-7B, ours toy-llava"),
    ],
)
def test_each_difference_of_protocol_is_said(cell: dict[str, Any], sentence: str) -> None:
    records = [replace(each, cell={**each.cell, **cell}) for each in RECORDS]
    assert any(note.startswith(sentence) for note in ours_beside_published.scores(compared(records)).notes)


def test_another_gpu_is_said() -> None:
    records = [replace(each, environment={"gpu": "NVIDIA H100", "cpu": "any"}) for each in RECORDS]
    notes = ours_beside_published.scores(compared(records)).notes
    assert "May explain it: gpu: theirs NVIDIA RTX A6000 (appendix A), ours NVIDIA H100." in notes


def test_splits_are_said_of_the_benchmarks_we_have() -> None:
    notes = ours_beside_published.scores(compared([*RECORDS, row("none", None, "vqav2", 76.0)])).notes
    assert any(note.startswith("May explain it (column VQAv2): split: theirs test-dev") for note in notes)
    assert not any("column VQAv2" in note for note in ours_beside_published.scores(compared(RECORDS)).notes)


def test_mme_is_compared_in_points_of_the_papers_metric() -> None:
    mme = replace(row("none", None, "mme", 65.0), metrics={"mme_total_score": 1820.0})
    section = ours_beside_published.scores(compared([*RECORDS, mme]))
    at = section.columns.index("MME")
    assert [each[at] for each in lines(section, "Vanilla")] == ["1862", "1820", "-42"]
    bare = ours_beside_published.scores(compared([*RECORDS, replace(mme, metrics={"mme_perception_score": 1500.0})]))
    assert lines(bare, "Vanilla")[1][at] == "-"
    assert any(note.startswith("Column MME: theirs is mme_total_score") for note in bare.notes)


def test_toy_budgets_are_matched_by_their_share() -> None:
    cell = {"backbone": "toy-llava"}
    records = [replace(each, cell={**each.cell, **cell}) for each in RECORDS]
    records = [
        replace(each, cell={**each.cell, "keep": 16}, visual_tokens_per_layer=(16.0,)) if each.cell["keep"] else
        replace(each, visual_tokens_per_layer=(144.0,))
        for each in records
    ]  # fmt: skip
    assert lines(ours_beside_published.scores(compared(records)), "DiffPrune", "Retain 64")[1][1] == "ours"
    assert lines(ours_beside_published.scores(compared(records)), "DiffPrune", "Retain 128")[1][1] != "ours"


def test_rates_are_matched_too() -> None:
    cell = {**LLAVA, "backbone": "qwen2.5-vl", "prompt": "template"}
    records = [
        make_record("none", None, "pope", 86.0, **cell),
        make_record("holov", None, "pope", 80.0, **{**cell, "prune_rate": 0.889}),
    ]
    section = ours_beside_published.scores(compared(records))
    assert section.heading.startswith("Table 3")
    assert lines(section, "HoloV", "Pruning rate 88.9")[1][1] == "ours"


def test_costs_beside_table_four() -> None:
    rows = [
        make_profile("none", "all", [10.0], stages_flops={"ttft": 8_900_000_000_000}),
        make_profile("holov", "16", [4.0], configuration="eager"),
    ]
    section = ours_beside_published.costs(rows, "heading")
    at = section.columns.index("FLOPs (T)")
    assert [each[at] for each in lines(section, "Full (LLaVA)")] == ["8.89", "8.90", "+0.01"]
    assert lines(section, "HoloV")[1][section.columns.index("TTFT (ms)")] == "4.00"
    assert lines(section, "DiffPrune")[0][1] == "paper"
    assert any("gpu: theirs NVIDIA RTX A6000 (section 5.3), ours none (a processor)" in note for note in section.notes)


def test_variants_beside_table_five() -> None:
    records = [row("none", None, "pope", 80.0)]
    for variant, score in (("diffprune-0", 72.0), ("diffprune-1", 76.0), ("gumbel-ste-0", 40.0)):
        records.append(row("diffprune", 64, "pope", score, params={"checkpoint": f"scorers/{variant}"}))
    section = ours_beside_published.variants(compared(records))
    assert [each[2] for each in lines(section, "Full DiffPrune")] == ["95.5", "92.5", "-3.0"]
    assert [each[2] for each in lines(section, "Gumbel-STE Throttler")] == ["87.4", "50.0", "-37.4"]
