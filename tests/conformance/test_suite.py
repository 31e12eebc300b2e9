"""The conformance suite: it passes what is right, finds what is wrong, and runs methods of other packages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from places import GOLDENS

from dpbench import registry
from dpbench.cli import messages
from dpbench.conformance import suite
from dpbench.conformance.report import run_checks
from dpbench.method import Budget, Method, Reduction, VisualTokens


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_every_shipped_method_conforms_everywhere_it_claims(name: str) -> None:
    wrong = [each for each in suite.check(name, {}) if not each.passed]
    assert not wrong


@dataclass(frozen=True, kw_only=True)
class TooMany(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(min(len(visual), keep + 1)))


@dataclass(frozen=True, kw_only=True)
class TooLarge(Method):
    def resize(self, grid_hw: tuple[int, int], budget: Budget) -> tuple[int, int]:
        return 1, budget.count + 1


@dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """Decides nothing, and says nothing of its budget."""


@dataclass(frozen=True, kw_only=True)
class Twice(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.zeros(keep, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class Restless(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.randperm(len(visual))[:keep].sort().values)


@dataclass(frozen=True, kw_only=True)
class Vandal(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        visual.embeds_ND.mul_(2)
        return Reduction(torch.arange(keep))


@dataclass(frozen=True, kw_only=True)
class Outside(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.full((keep,), len(visual)))


@dataclass(frozen=True, kw_only=True)
class Greedy(Method):
    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        return frozenset({"cls_atention"})


@pytest.mark.parametrize(
    ("method", "title"),
    [
        (TooMany, "keeps to the budget"),
        (TooLarge, "keeps to the budget"),
        (Idle, "keeps to the budget"),
        (Twice, "keeps valid tokens once"),
        (Restless, "repeats itself"),
        (Vandal, "does not change its input"),
        (Outside, "keeps to the budget"),
        (Greedy, "asks for what exists"),
    ],
)
def test_each_fault_is_found(monkeypatch: pytest.MonkeyPatch, method: type[Method], title: str) -> None:
    def load(name: str, params: Any = None) -> Method:
        return method()

    monkeypatch.setattr(registry, "load", load)
    torch.manual_seed(0)
    found = {each.check for each in suite.check("theirs", {}, ("llava",)) if not each.passed}
    assert title in found


def test_only_a_method_that_says_so_may_spend_more(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(TooMany):
        spends = "own"

    for method, passes in ((Own, True), (TooMany, False)):
        monkeypatch.setattr(registry, "load", lambda name, params, method=method: method())
        findings = [each for each in suite.check("theirs", {}, ("llava",)) if each.check == "keeps to the budget"]
        assert [each.passed for each in findings] == [passes]


def test_vectors_that_pass_are_counted() -> None:
    report = run_checks("holov", [], ("llava",), GOLDENS)
    assert report.passed
    assert (
        messages.format_conformance(report).splitlines()[-1]
        == f"{len(list(GOLDENS.glob('holov_*')))} of {len(list(GOLDENS.glob('holov_*')))} vectors"
    )


def test_a_method_of_another_package_is_checked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin is a package with an entry point: no line of dpbench knows it."""
    plugin = Path(__file__).parents[1] / "plugin"
    monkeypatch.syspath_prepend(str(plugin))
    registry.methods.cache_clear()
    try:
        assert "first-row" in registry.methods()
        assert registry.summary("first-row") == "Keep the first tokens in reading order."
        report = run_checks("first-row", ["positions=original"], ("llava", "qwen2_5_vl"), None)
        assert report.passed, report.findings
    finally:
        registry.methods.cache_clear()


def test_a_reason_is_told_once_for_all_the_checks_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name, params: TooMany())
    text = suite.table(list(suite.check("theirs", {}, ("llava",))))
    assert text.splitlines()[-2:] == [
        "hyper-parameters: positions='compact'; budget: per-image",
        "llava: keeps to the budget, keeps valid tokens once, repeats itself, answers in batches as alone, leaves no "
        "hooks, does not change its input: ValueError: TooMany.reduce: 5 rows for a budget of 4 (budget final, -75.0%)",
    ]
