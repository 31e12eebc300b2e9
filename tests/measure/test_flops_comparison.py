"""Three counts of the same forward, side by side; that they are equal per stage is in test_flops_only.py."""

from dataclasses import replace
from typing import Any

import pytest

from dpbench import registry
from dpbench.backbones import miniatures
from dpbench.cli.profile_arguments import check_verify
from dpbench.errors import ConfigError, MissingError
from dpbench.manifest.reading import make_manifest
from dpbench.measure import flops, flops_comparison
from dpbench.measure.flops_comparison import COUNTERS, FORMULA, FULL_CPU, FULL_META, MINIATURE, ComparisonRow


def compare(backbone: str, methods: list[Any], image_hw: tuple[int, int] | None = None) -> list[ComparisonRow]:
    data = {"name": "test", "backbone": backbone, "methods": methods, "budgets": {"prune_rate": [0.5]}}
    return flops_comparison.compare(make_manifest(data, source="test"), text_tokens=66, image_hw=image_hw)


def test_a_clip_tower_and_its_decoder_are_counted_at_full_size_on_the_meta_device() -> None:
    (row,) = compare("llava-1.5", ["fastv"])
    assert (row.size, row.full_size_refusal, row.reasons) == (FULL_META, "", {})
    assert set(row.flops) == {FORMULA, *COUNTERS}
    assert len(set(row.flops.values())) == 1


def test_a_tower_that_reads_values_is_counted_as_its_miniature_and_says_why() -> None:
    rows = compare("qwen2.5-vl-3b", ["fastv", "cls-attention"], (112, 112))
    fastv, cls_attention = rows
    assert fastv.size == MINIATURE
    assert "meta tensor" in fastv.full_size_refusal
    assert len(set(fastv.flops.values())) == 1
    assert (cls_attention.size, cls_attention.flops) == ("-", {})
    notes = flops_comparison.notes("qwen2.5-vl-3b", rows)
    assert any(note.startswith("qwen2.5-vl-3b cannot be counted at full size") for note in notes)
    assert "(closed form, torch, fvcore): cls-attention needs a vision tower with a CLS token" in notes[-1]
    assert flops_comparison.table_row(cls_attention)["torch MFLOP"] == "-"


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("name", ["none", "tome", "pyramiddrop"])
def test_one_whole_forward_has_the_same_count_three_ways(family: str, name: str) -> None:
    method = registry.load(name)
    backbone = flops_comparison.miniature(family)
    rule = flops_comparison.Rule(flops_comparison.BudgetRequest(prune_rate=0.5))
    full = flops_comparison.Subject(backbone, method, rule, flops_comparison.SIZES_HW[family], 66)
    flops_by_way, reasons = flops_comparison.count_miniature(full, method)
    assert reasons == {}
    assert len(set(flops_by_way.values())) == 1


def test_work_that_depends_on_the_image_and_decompositions_are_named() -> None:
    prunesid, grid = compare("toy-llava", ["prunesid", "grid"])
    assert prunesid.size == grid.size == FULL_CPU
    assert prunesid.decompositions == ("linalg_qr", "linalg_svd")
    assert (grid.decompositions, grid.content_flops) == ((), 0)
    notes = flops_comparison.notes("toy-llava", [replace(grid, content_flops=2_000_000), prunesid])
    assert any("changes by 2.000 MFLOP" in note for note in notes)
    assert any("no counter sees linalg_qr, linalg_svd" in note for note in notes)


def test_a_counter_that_cannot_run_is_a_dash_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MissingError("counting FLOPs by fvcore needs fvcore")

    monkeypatch.setattr(flops, "fvcore_handles", refuse)
    (row,) = compare("toy-llava", ["none"])
    assert row.flops[FORMULA] == row.flops["torch"]
    printed = flops_comparison.table_row(row)
    assert (printed["torch differs"], printed["fvcore MFLOP"], printed["fvcore differs"]) == ("+0.000 %", "-", "-")
    assert flops_comparison.notes("toy-llava", [row])[-1] == "none (fvcore): counting FLOPs by fvcore needs fvcore"


def test_verify_needs_flops_only() -> None:
    with pytest.raises(ConfigError, match="--verify compares FLOP counters; add --flops-only"):
        check_verify(verify=True, flops_only=False)
    check_verify(verify=True, flops_only=True)
    check_verify(verify=False, flops_only=False)
