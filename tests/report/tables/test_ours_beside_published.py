"""Theirs beside ours: a difference only where both are the same quantity, else why not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_records import make_record
from table_cells import column, csv, lines

from dpbench.report import runs
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables import ours_beside_published, published
from dpbench.report.tables.table import Section
from dpbench.storage.record import Record

LLAVA: dict[str, Any] = {
    "backbone": "llava-1.5", "prompt": "vicuna_v1", "dtype": "float16", "ocr": True, "limit": None,
    "wording": "llava", "reading": "llava", "image_aspect": "pad",
}  # fmt: skip
COLUMNS = published.load(1).columns


def row(
    method: str, keep: int | None, task: str, score: float, metrics: Mapping[str, float] | None = None, **cell: Any
) -> Record:
    """Return a record on the paper's GPU; by default its metric is the one of Table 1's column, a ratio."""
    found = {COLUMNS[task].metric: score / 100} if metrics is None and task in COLUMNS else metrics or {}
    each = make_record(method, keep, task, score, **{**LLAVA, **cell})
    each = replace(each, visual_tokens_per_layer=(float(keep or 576),) * 2, metrics=found, num_samples=2000)
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


def beside(records: list[Record]) -> Section:
    return ours_beside_published.scores(compared(records))


def changed(**cell: Any) -> list[Record]:
    return [replace(each, cell={**each.cell, **cell}) for each in RECORDS]


def test_theirs_ours_and_the_difference() -> None:
    section = beside(RECORDS)
    assert [each[1] for each in lines(section, "DiffPrune", "Retain 64")] == ["paper", "ours", "difference"]
    assert column(section, "GQA", "DiffPrune", "Retain 64") == ["56.8", "57.0", "+0.2"]
    assert "Why not" not in csv(section, "GQA")


def test_a_row_we_do_not_have_is_theirs_alone() -> None:
    section = beside(RECORDS)
    assert [each[1] for each in lines(section, "HoloV", "Retain 64")][1] == "paper"
    frame = section.frame.set_index(["Row", "Group", "Column"])
    assert frame["Ours"].isna().loc["HoloV", "Retain 64 tokens (88.9 % pruning)", "GQA"]


def test_pope_is_compared_in_f1_whatever_our_score_is() -> None:
    metrics = {"pope_accuracy": 0.872, "pope_f1_score": 0.859}
    section = beside([*RECORDS[:1], row("none", None, "pope", 87.2, metrics)])
    assert column(section, "POPE") == ["85.9", "85.9", "+0.0"]


def test_accuracy_is_never_subtracted_from_f1() -> None:
    section = beside([*RECORDS[:1], row("none", None, "pope", 87.2, {"pope_accuracy": 0.872})])
    assert column(section, "POPE") == ["85.9", "-a", "-"]
    assert "a: POPE: our records have no pope_f1_score, which theirs is" in section.notes
    assert csv(section, "POPE")["Why not"] == "POPE: our records have no pope_f1_score, which theirs is"


def test_a_score_without_the_metric_in_one_seed_is_no_score() -> None:
    second = row("none", None, "pope", 87.2, {"pope_accuracy": 0.872}, seed=1)
    assert column(beside([*RECORDS, second]), "POPE")[1] == "-a"


def test_mme_is_compared_in_points_of_the_papers_metric() -> None:
    mme = row("none", None, "mme", 65.0, {"mme_total_score": 1820.0})
    assert column(beside([*RECORDS, mme]), "MME") == ["1862", "1820", "-42"]
    bare = beside([*RECORDS, replace(mme, metrics={"mme_perception_score": 1500.0})])
    assert column(bare, "MME") == ["1862", "-a", "-"]


@pytest.mark.parametrize("task", ["vqav2", "vqav2_val_10k"])
def test_validation_is_never_subtracted_from_test_dev(task: str) -> None:
    section = beside([*RECORDS, row("none", None, task, 76.6)])
    assert column(section, "VQAv2") == ["78.5", "76.6", "-a"]
    (note,) = [note for note in section.notes if note.startswith("a: ")]
    assert note.startswith("a: VQAv2: theirs is VQA accuracy on test-dev, from the evaluation server; ours VQAv2")
    assert "validation)" in note
    assert set(csv(section, "VQAv2")) == {"Table", "Row", "Group", "Column", "Theirs", "Ours", "Why not"}


def test_images_alone_are_never_subtracted_from_all_of_seed() -> None:
    images, everything = row("none", None, "seedbench", 66.1), row("none", None, "seedbench_all", 60.2)
    assert column(beside([*RECORDS, images]), "SEED") == ["60.5", "66.1", "-a"]
    assert column(beside([*RECORDS, everything]), "SEED") == ["60.5", "60.2", "-0.3"]
    assert column(beside([*RECORDS, images, everything]), "SEED") == ["60.5", "60.2", "-0.3"]


def test_textvqa_without_ocr_tokens_is_never_subtracted_from_textvqa_with() -> None:
    with_tokens = [*RECORDS, row("none", None, "textvqa", 58.0)]
    assert column(beside(with_tokens), "TextVQA") == ["58.2", "58.0", "-0.2"]
    without = [replace(each, cell={**each.cell, "ocr": False}) for each in with_tokens]
    section = beside(without)
    assert column(section, "TextVQA") == ["58.2", "58.0", "-a"]
    assert "a: TextVQA: ocr is true with theirs, false with ours" in section.notes
    assert column(section, "GQA")[2] == "+0.1"  # the setting is of one column


def test_textvqa_of_llava_next_is_without_ocr_tokens() -> None:
    cell = {"backbone": "llava-next", "grids": "llava", "image_aspect": None}
    for ocr, difference in ((False, "-0.9"), (True, "-a")):
        section = beside([row("none", None, "textvqa", 64.0, **cell, ocr=ocr)])
        assert section.heading.startswith("Table 2")
        assert column(section, "TextVQA") == ["64.9", "64.0", difference]


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"backbone": "toy-llava"}, "No differences: theirs is LLaVA-1.5-7B, ours toy-llava, another model."),
        ({"backbone": "llava-1.5-13b"}, "No differences: theirs is LLaVA-1.5-7B, ours llava-1.5-13b, another model."),
        ({"limit": 30}, "No differences: theirs has all samples, ours 30 a benchmark."),
    ],
)
def test_another_model_and_a_part_of_the_samples_have_no_differences(cell: dict[str, Any], sentence: str) -> None:
    section = beside(changed(**cell))
    assert sentence in section.notes
    assert column(section, "GQA")[:2] == ["61.9", "62.0"]
    assert not any(each.cells[1].text == "difference" for each in section.rows)
    assert section.frame["Difference"].isna().all()
    assert csv(section, "GQA")["Why not"] == sentence.removeprefix("No differences: ").removesuffix(".")


def test_qwen_of_another_size_is_another_model() -> None:
    section = beside(changed(backbone="qwen2.5-vl-3b", prompt="template", image_aspect=None))
    assert section.heading.startswith("Table 3")
    assert any(note.startswith("No differences: theirs is Qwen2.5-VL-7B, ours qwen2.5-vl-3b") for note in section.notes)


def test_averages_are_over_what_both_measure_the_same_way() -> None:
    validation = [row("none", None, "vqav2", 76.0), row("diffprune", 64, "vqav2", 38.0)]
    section = beside([*RECORDS, *validation])
    ours = (57 / 62 + 83 / 86) / 2 * 100
    theirs = (56.8 / 61.9 + 83.4 / 85.9) / 2 * 100
    group = "Retain 64"
    assert column(section, "Avg. both", "DiffPrune", group) == [f"{theirs:.1f}", f"{ours:.1f}", f"{ours - theirs:+.1f}"]
    assert column(section, "Avg.", "DiffPrune", group) == ["96.5", "-", "-"]


def test_the_printed_average_is_compared_when_every_column_is() -> None:
    records = [row("none", None, task, 90.0) for task in COLUMNS if task != "mme"]
    records += [row("diffprune", 64, task, 72.0) for task in COLUMNS if task != "mme"]
    mme = [row(method, keep, "mme", 90.0, {"mme_total_score": 1000.0}) for method, keep in (("none", None),)]
    mme.append(row("diffprune", 64, "mme", 72.0, {"mme_total_score": 800.0}))
    section = beside([*records, *mme])
    assert column(section, "Avg.", "DiffPrune", "Retain 64") == ["96.5", "80.0", "-16.5"]


def test_a_benchmark_that_does_not_count_is_compared_but_in_no_average() -> None:
    """POPE's 66 is what always saying yes gives."""
    few = [replace(each, score=66.0) if each.cell["task"] == "pope" and each.cell["method"] == "none" else each
           for each in RECORDS]  # fmt: skip
    section = beside(few)
    ours, theirs, group = 100 * 57 / 62, 100 * 56.8 / 61.9, "Retain 64"
    assert column(section, "POPE", "DiffPrune", group)[:2] == ["83.4", "83.0"]
    assert column(section, "Avg. both", "DiffPrune", group) == [f"{theirs:.1f}", f"{ours:.1f}", f"{ours - theirs:+.1f}"]
    assert any(note.startswith("Shown but left out of the average, for all rows:") for note in section.notes)


def test_the_papers_protocol_explains_nothing() -> None:
    notes = [note for note in beside(RECORDS).notes if note.startswith("May explain")]
    assert notes == ["May explain a difference: attention: theirs not stated, ours sdpa."]


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"prompt": "template"}, ": prompt: theirs vicuna_v1 (inferred), ours template."),
        ({"dtype": "bfloat16"}, ": dtype: theirs float16 (section 5.3), ours bfloat16."),
        ({"image_aspect": "crop"}, ": image_aspect: theirs pad (inferred), ours crop."),
        ({"reading": "first-word"}, " (POPE): reading: theirs llava (inferred), ours first-word."),
        ({"weights": "a/folder/of-weights"}, ": weights: ours of-weights."),
        ({"quantize": "4bit"}, ": quantize: ours 4bit."),
    ],
)
def test_what_only_may_move_a_score_is_said_and_the_difference_stays(cell: dict[str, Any], sentence: str) -> None:
    section = beside(changed(**cell))
    assert f"May explain a difference{sentence}" in section.notes
    assert column(section, "GQA")[2] == "+0.1"


def test_a_setting_of_columns_that_we_do_not_have_is_not_said() -> None:
    wording = "wording: theirs llava"
    assert not any(wording in note for note in beside(changed(wording="lmms-eval")).notes)
    records = [row("none", None, "mmbench_en", 64.0, {"gpt_eval_score": 64.0}, wording="lmms-eval")]
    section = beside(records)
    assert any(note.startswith(f"May explain a difference (MMB): {wording}") for note in section.notes)
    assert column(section, "MMB") == ["64.7", "64.0", "-0.7"]


def test_another_gpu_is_said() -> None:
    records = [replace(each, environment={"gpu": "NVIDIA H100", "cpu": "any"}) for each in RECORDS]
    assert (
        "May explain a difference: gpu: theirs NVIDIA RTX A6000 (appendix A), ours NVIDIA H100."
        in beside(records).notes
    )


def test_pixels_that_the_paper_does_not_state_are_said() -> None:
    cell = {"backbone": "qwen2.5-vl", "prompt": "template", "image_aspect": None, "min_pixels": 200_704}
    notes = beside(changed(**cell)).notes
    assert "May explain a difference: min_pixels: theirs not stated, ours 200704." in notes
    assert any(note.startswith("Repetition penalty: theirs not stated, 1.05 in Qwen2.5-VL's") for note in notes)


@pytest.mark.parametrize(
    ("method", "name", "words"),
    [
        ("fastv", "FastV", "FastV's own code gives VQAv2 74.1, GQA 56.6, SQA 69.1 at a mean of 171 tokens"),
        ("pyramiddrop", "PDrop", "L8-L24 cannot reach a mean of 128 or 64, the layers before 8 alone read 144"),
    ],
)
def test_rows_that_cannot_be_met_have_a_note_and_a_difference(method: str, name: str, words: str) -> None:
    section = beside([*RECORDS, row(method, 64, "gqa", 50.0)])
    letter = next(note[0] for note in section.notes if words in note)
    assert column(section, "GQA", f"{name}{letter}", "Retain 64")[2].startswith("+")


def test_toy_budgets_are_matched_by_their_share() -> None:
    records = [
        replace(each, cell={**each.cell, "keep": 16}, visual_tokens_per_layer=(16.0,)) if each.cell["keep"] else
        replace(each, visual_tokens_per_layer=(144.0,))
        for each in changed(backbone="toy-llava")
    ]  # fmt: skip
    assert lines(beside(records), "DiffPrune", "Retain 64")[1][1] == "ours"
    assert lines(beside(records), "DiffPrune", "Retain 128")[1][1] != "ours"


def test_rates_are_matched_too() -> None:
    cell = {"backbone": "qwen2.5-vl", "prompt": "template"}
    section = beside(
        [row("none", None, "pope", 86.0, **cell), row("holov", None, "pope", 80.0, **cell, prune_rate=0.889)]
    )
    assert section.heading.startswith("Table 3")
    assert lines(section, "HoloV", "Pruning rate 88.9")[1][1] == "ours"


FOUR = published.load(5).data["tasks"]


def ablated(f1: str = "pope_f1_score", tasks: tuple[str, ...] = tuple(FOUR), **cell: Any) -> Section:
    """Return Table 5 beside an ablation whose F1 falls to three quarters and whose accuracy does not."""
    records = []
    for variant, share in ((None, 1.0), ("diffprune-0", 0.75), ("diffprune-1", 0.75), ("gumbel-ste-0", 0.5)):
        params = {"checkpoint": f"scorers/{variant}"} if variant else {}
        method, keep = ("diffprune", 64) if variant else ("none", None)
        metrics = {"gqa": {"exact_match": 0.6 * share}, "mmbench_en": {"gpt_eval_score": 60 * share},
                   "mme": {"mme_total_score": 1800 * share}, "pope": {f1: 0.8 * share}}  # fmt: skip
        records += [row(method, keep, task, 80.0, metrics[task], params=params, **cell) for task in tasks]
    return ours_beside_published.variants(compared(records))


def test_variants_beside_table_five_in_the_papers_metrics() -> None:
    section = ablated()
    assert [each[2] for each in lines(section, "Full DiffPrune")] == ["95.5", "75.0", "-20.5"]
    assert [each[2] for each in lines(section, "Gumbel-STE Throttler")] == ["87.4", "50.0", "-37.4"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"f1": "pope_accuracy"}, "POPE of theirs is pope_f1_score, which our records do not have"),
        ({"tasks": ("gqa", "pope")}, "theirs is over gqa, mmbench_en, pope, mme; ours over gqa, pope"),
        ({"backbone": "toy-llava"}, "theirs is LLaVA-1.5-7B, ours toy-llava, another model"),
        ({"limit": 30}, "theirs has all samples, ours 30 a benchmark"),
    ],
)
def test_other_averages_have_no_difference_from_table_five(changes: dict[str, Any], reason: str) -> None:
    section = ablated(**changes)
    assert f"No differences: {reason}." in section.notes
    assert [each[1] for each in lines(section, "Full DiffPrune")][:2] == ["paper", "ours"]
    assert section.frame["Difference"].isna().all()


def test_table_five_has_the_protocol_of_table_one() -> None:
    notes = ablated(reading="first-word", image_aspect="crop", ocr=False).notes
    assert "May explain a difference (MME, POPE): reading: theirs llava (inferred), ours first-word." in notes
    assert "May explain a difference: image_aspect: theirs pad (inferred), ours crop." in notes
    assert not any("ocr" in note for note in notes)  # of TextVQA, which Table 5 does not have
