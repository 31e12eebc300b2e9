"""Table 4 beside our profiles: milliseconds on the paper's GPU only, FLOPs and speed-ups of its model on any."""

from typing import Any

import pytest
from made_records import make_profile
from table_cells import column, csv, lines

from dpbench.report.tables.costs_beside_published import costs
from dpbench.report.tables.table import Section

A6000 = {"device": "cuda", "gpu": "NVIDIA RTX A6000", "cpu": "any", "dtype": "float16", "attention": "sdpa"}


def beside(environment: dict[str, Any] = A6000, **changes: Any) -> Section:
    """Return Table 4 beside three methods, the pruned ones twice as fast, on a card like the paper's."""
    shared = {"backbone": "llava-1.5", "environment": environment, **changes}
    full = {"visual_tokens_per_layer": (576, 576), "num_visual": 576.0, "stages_flops": {"ttft": 8_900_000_000_000}}
    pruned = {"visual_tokens_per_layer": (64, 64), "num_visual": 64.0, "stages_flops": {"ttft": 2_100_000_000_000}}
    rows = [make_profile("none", "all", [100.0], **{**full, **shared})]
    rows += [make_profile(name, "64", [50.0], **{**pruned, **shared}) for name in ("holov", "pyramiddrop")]
    return costs(rows, "heading")


def test_on_the_same_card_everything_compares() -> None:
    section = beside()
    assert column(section, "FLOPs (T)", "Full (LLaVA)") == ["8.89", "8.90", "+0.01"]
    assert column(section, "TTFT (ms)", "HoloV") == ["77.39", "50.00", "-27.39"]
    assert column(section, "Speed-up", "HoloV") == ["1.93", "2.00", "+0.07"]
    assert lines(section, "DiffPrune")[0][1] == "paper"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({**A6000, "gpu": "NVIDIA H200"}, "NVIDIA H200"),
        ({"dtype": "float16", "cpu": "a processor"}, "none (a processor)"),
    ],
)
def test_milliseconds_of_another_processor_are_never_subtracted(environment: dict[str, Any], name: str) -> None:
    section = beside(environment)
    assert column(section, "TTFT (ms)", "HoloV") == ["77.39", "50.00", "-a"]
    assert f"a: milliseconds on another processor: theirs NVIDIA RTX A6000, ours {name}" in section.notes
    assert "Difference" not in csv(section, "TTFT (ms)", "HoloV")
    assert column(section, "FLOPs (T)", "HoloV")[2] == "-0.05"
    assert column(section, "Speed-up", "HoloV")[2] == "+0.07"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "toy-llava"}, "theirs is LLaVA-1.5-7B, ours toy-llava, another model"),
        ({"batch_size": 8}, "theirs is of batch size 1, ours of 8"),
    ],
)
def test_another_model_or_batch_has_no_differences(changes: dict[str, Any], reason: str) -> None:
    section = beside(**changes)
    assert f"No differences: {reason}." in section.notes
    assert section.frame["Difference"].isna().all()
    assert column(section, "FLOPs (T)", "Full (LLaVA)")[:2] == ["8.89", "8.90"]


def test_pyramiddrop_of_table_four_is_of_another_budget() -> None:
    section = beside()
    assert column(section, "FLOPs (T)", "PyramidDropa") == ["4.89", "2.10", "-a"]
    assert any(note.startswith("a: 4.89 T are those of halving at layers 8, 16, 24") for note in section.notes)


def test_dtype_and_configuration_may_explain() -> None:
    section = beside({**A6000, "dtype": "bfloat16"}, configuration="cuda-graph")
    assert "May explain a difference: dtype: theirs float16 (section 5.3), ours bfloat16." in section.notes
    assert "May explain a difference: configuration: theirs not stated, ours cuda-graph." in section.notes
    assert column(section, "TTFT (ms)", "HoloV")[2] == "-27.39"
