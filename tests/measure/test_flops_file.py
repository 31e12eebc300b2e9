"""Counted FLOPs are printed, and written where a folder is named."""

from pathlib import Path

from dpbench.cli.arguments import CellFlags
from dpbench.cli.profile_arguments import ProfileFlags, build_comparison, build_settings
from dpbench.measure.flops_file import write_flops
from dpbench.report.tables.render import render


def test_the_table_is_written_only_where_a_folder_is_named(tmp_path: Path) -> None:
    comparison = build_comparison(None, CellFlags(methods=["none"]))
    parts = [(comparison, build_settings(comparison, ProfileFlags()))]
    (table,) = write_flops(parts, tmp_path / "out", verify=False)
    text = (tmp_path / "out/flops/flops.md").read_text()
    assert text == f"{render(table, 'markdown')}\n"
    assert text.startswith("### toy-llava, one image of 336 x 336 pixels")
    assert [row.cells[0].text for row in table.rows] == ["none"]
    assert [again.rows for again in write_flops(parts, None, verify=False)] == [table.rows]
    assert [path.name for path in tmp_path.rglob("*.md")] == ["flops.md"]
