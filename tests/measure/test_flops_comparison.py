"""Three counts of the same forward; test_flops_only.py checks that they are equal stage by stage."""

from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from dpbench import registry
from dpbench.backbones import miniatures
from dpbench.cli.commands import app, main
from dpbench.cli.profile_arguments import check_verify
from dpbench.errors import ConfigError, MissingError
from dpbench.manifest.reading import make_manifest
from dpbench.measure import flops, flops_comparison, flops_comparison_table
from dpbench.measure.flops_comparison import COUNTERS, FORMULA, FULL_CPU, FULL_META, MINIATURE, ComparisonRow


def compare(backbone: str, methods: list[Any], image_hw: tuple[int, int] | None = None) -> list[ComparisonRow]:
    data = {"name": "test", "backbone": backbone, "methods": methods, "budgets": {"prune_rate": [0.5]}}
    return flops_comparison.compare(make_manifest(data, source="test"), text_tokens=66, image_hw=image_hw)


def test_a_clip_tower_and_its_decoder_are_counted_at_full_size_on_the_meta_device() -> None:
    (row,) = compare("llava-1.5", ["fastv"])
    assert (row.size, row.full_size_refusal, row.reasons) == (FULL_META, "", {})
    assert set(row.flops) == {FORMULA, *COUNTERS}
    assert len(set(row.flops.values())) == 1


def test_a_tower_that_reads_values_is_counted_as_its_miniature_with_the_reason() -> None:
    rows = compare("qwen2.5-vl-3b", ["fastv", "cls-attention"], (112, 112))
    fastv, cls_attention = rows
    assert fastv.size == MINIATURE
    assert "meta tensor" in fastv.full_size_refusal
    assert len(set(fastv.flops.values())) == 1
    assert (cls_attention.size, cls_attention.flops) == ("-", {})
    notes = flops_comparison_table.notes("qwen2.5-vl-3b", rows)
    assert any(note.startswith("qwen2.5-vl-3b cannot be counted at full size") for note in notes)
    assert "(closed form, torch, fvcore): cls-attention needs a vision tower with a CLS token" in notes[-1]
    assert flops_comparison_table.table_row(cls_attention)["torch MFLOP"] == "-"


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("name", ["none", "tome", "pyramiddrop"])
def test_a_whole_forward_has_the_same_count_three_ways(family: str, name: str) -> None:
    method = registry.load(name)
    backbone = flops_comparison.miniature(family)
    rule = flops_comparison.Rule(flops_comparison.BudgetRequest(prune_rate=0.5))
    full = flops_comparison.CountedMethod(backbone, method, rule, flops_comparison.SIZES_HW[family], 66)
    flops_by_way, reasons = flops_comparison.count_miniature(full, method)
    assert reasons == {}
    assert len(set(flops_by_way.values())) == 1


def test_work_that_depends_on_the_image_and_decompositions_are_named() -> None:
    prunesid, grid = compare("toy-llava", ["prunesid", "grid"])
    assert prunesid.size == grid.size == FULL_CPU
    assert prunesid.decompositions == ("linalg_qr", "linalg_svd")
    assert (grid.decompositions, grid.content_flops) == ((), 0)
    notes = flops_comparison_table.notes("toy-llava", [replace(grid, content_flops=2_000_000), prunesid])
    assert any("changes by 2.000 MFLOP" in note for note in notes)
    assert any("no counter sees linalg_qr, linalg_svd" in note for note in notes)


def test_a_counter_that_cannot_run_is_a_dash_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MissingError("counting FLOPs by fvcore needs fvcore")

    monkeypatch.setattr(flops, "fvcore_handles", refuse)
    (row,) = compare("toy-llava", ["none"])
    assert row.flops[FORMULA] == row.flops["torch"]
    cells = flops_comparison_table.table_row(row)
    assert (cells["torch differs"], cells["fvcore MFLOP"], cells["fvcore differs"]) == ("+0.000 %", "-", "-")
    assert (
        flops_comparison_table.notes("toy-llava", [row])[-1] == "none (fvcore): counting FLOPs by fvcore needs fvcore"
    )


def test_the_command_prints_the_three_counts_of_each_method() -> None:
    flags = ["--flops-only", "--verify", "--backbone", "toy-llava", "--method", "none,fastv", "--keep", "16"]
    result = CliRunner().invoke(app, ["profile", *flags])
    assert result.exit_code == 0, result.output
    _, _, header, _, none, fastv, *notes = result.stdout.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:4]] == ["Method", "Size", "Closed form MFLOP"]
    for line, label in ((none, "none"), (fastv, "fastv @ 16")):
        _, method, size, formula, by_torch, difference, by_fvcore, _, _ = (cell.strip() for cell in line.split("|"))
        assert (method, size, difference) == (label, FULL_CPU, "+0.000 %")
        assert formula == by_torch == by_fvcore
    assert "- full, CPU: a whole forward of toy-llava on the CPU." in notes


def test_the_command_refuses_verify_without_flops_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dpbench", "profile", "--verify", "--method", "none"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "ConfigError: --verify compares FLOP counters; add --flops-only\n"


def test_verify_needs_flops_only() -> None:
    with pytest.raises(ConfigError, match="--verify compares FLOP counters; add --flops-only"):
        check_verify(verify=True, flops_only=False)
    check_verify(verify=True, flops_only=True)
    check_verify(verify=False, flops_only=False)
