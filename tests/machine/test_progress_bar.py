"""Long work is seen: a bar where there is a terminal, lines where there is none."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from dpbench.machine import progress_bar
from dpbench.machine.progress_bar import Bar


def lines(*, terminal: bool, every: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what three updates of five have printed by then, before the bar's end."""
    monkeypatch.setattr(progress_bar, "EVERY", every)
    # TERM as a bar needs it: a dumb terminal gets lines
    console = Console(file=StringIO(), force_terminal=terminal, width=60, _environ={"TERM": "xterm"})
    with Bar(console=console, auto_refresh=False) as bar:
        task = bar.add_task("pope", total=5)
        for _ in range(3):
            bar.update(task, advance=1)
        return console.file.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(terminal=False, every=0.0, monkeypatch=monkeypatch)
    assert [line.split()[0] for line in shown] == ["pope"] * 3
    assert "60%" in shown[-1]


def test_a_log_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(terminal=False, every=60.0, monkeypatch=monkeypatch) == []


def test_a_terminal_gets_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "60%" not in "".join(lines(terminal=True, every=0.0, monkeypatch=monkeypatch))
