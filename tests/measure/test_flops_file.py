"""Counted FLOPs are printed, and written where a folder is named."""

from pathlib import Path

from dpbench.cli.arguments import CellFlags
from dpbench.cli.profile_arguments import ProfileFlags, build_comparison, build_settings
from dpbench.measure.flops_file import write_flops


def test_the_table_is_written_only_where_a_folder_is_named(tmp_path: Path) -> None:
    comparison = build_comparison(None, CellFlags(methods=["none"]))
    parts = [(comparison, build_settings(comparison, ProfileFlags()))]
    text = write_flops(parts, tmp_path / "out", verify=False)
    assert text.startswith("|")
    assert (tmp_path / "out/flops/flops.md").read_text() == f"{text}\n"
    assert write_flops(parts, None, verify=False) == text
    assert [path.name for path in tmp_path.rglob("*.md")] == ["flops.md"]
