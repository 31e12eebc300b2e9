"""The table of FLOPs: shares of the unpruned model, units, dashes for methods that refuse, and notes."""

from typing import Any

from dpbench.manifest.reading import make_manifest
from dpbench.measure import flops_table
from dpbench.measure.flops_only import FlopsRow, count_manifest


def count(backbone: str, methods: list[str], budgets: dict[str, Any], **sizes: Any) -> list[FlopsRow]:
    data = {"name": "test", "backbone": backbone, "methods": methods, "budgets": budgets}
    return count_manifest(make_manifest(data, source="test"), **sizes)


def test_the_table_shows_shares_of_none_and_small_models_in_mflop() -> None:
    rows = count("toy-llava", ["none", "grid"], {"keep": [16]}, text_tokens=66)
    none, grid = flops_table.table_rows(rows)
    assert (none["Method"], none["Tokens"], none["of none"]) == ("none", "144", "100.0%")
    share = f"{rows[1].total / rows[0].total:.1%}"
    assert (grid["Method"], grid["Tokens"], grid["of none"]) == ("grid @ 16", "16", share)
    assert none["Total MFLOP"] == f"{rows[0].total / 1e6:,.1f}"
    assert "66 text tokens" in flops_table.notes(rows)[0]


def test_a_method_that_refuses_has_dashes_and_a_note() -> None:
    rows = count("qwen2.5-vl-3b", ["none", "cls-attention"], {"prune_rate": [0.9]}, text_tokens=10, image_hw=(224, 224))
    assert flops_table.table_rows(rows)[1]["Total GFLOP"] == "-"
    assert flops_table.notes(rows)[-1] == (
        "cls-attention @ -90.0%: cls-attention needs a vision tower with a CLS token, and this backbone has none"
    )
