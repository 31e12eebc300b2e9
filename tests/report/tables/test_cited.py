"""Systems that are cited and not run: the command shows each with its reason, and none of them is installed."""

import sys

import pytest
import yaml

from dpbench import registry
from dpbench.cli import commands
from dpbench.report.tables import published
from dpbench.report.tables.cited import load_cited


def test_the_command_shows_each_with_paper_and_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpbench", "list", "methods", "--cited"])
    with pytest.raises(SystemExit) as done:
        commands.main()
    assert not done.value.code
    lines = capsys.readouterr().out.splitlines()
    names = ["VoCo-LLaMA", "ATP-LLaVA", "Dynamic-LLaVA", "p-MoD", "GlimpsePrune"]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == names
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for name, each in load_cited().items():
        assert f"{name} {each.reason} ({each.paper})" in text


def test_they_are_no_installed_methods_and_cover_the_papers_rows_without_one() -> None:
    names = {name.lower() for name in load_cited()}
    assert not names & set(registry.methods())
    for number in published.COMPARISONS:
        data = yaml.safe_load((published.folder() / f"table{number}.yaml").read_text(encoding="utf-8"))
        assert {row["row"] for row in data["rows"] if row["method"] is None} <= set(load_cited())
