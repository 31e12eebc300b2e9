"""Methods with one fault each, as a third party might write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import torch

from dpbench.method import Budget, Cut, LayerView, Method, Reduction, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Raises(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        raise ZeroDivisionError("no such luck")


@dataclass(frozen=True, kw_only=True)
class Table(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(keep)[None])


@dataclass(frozen=True, kw_only=True)
class ShortRows(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(keep), embeds_KD=visual.embeds_ND[: keep - 1])


@dataclass(frozen=True, kw_only=True)
class Nothing(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return None  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Twice(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.zeros(keep, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class Outside(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(keep) + len(visual) - keep + 1)


@dataclass(frozen=True, kw_only=True)
class Undefined(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(keep), scores_N=visual.embeds_ND[:, 0] * torch.nan)


@dataclass(frozen=True, kw_only=True)
class TooMany(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(keep + 1))


@dataclass(frozen=True, kw_only=True)
class Inside(Method):
    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return (Cut(layer=2, keep=min(num_visual, budget.count), probe=2),)


@dataclass(frozen=True, kw_only=True)
class InsideTwice(Inside):
    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.zeros(view.cut.keep, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class InsideOutside(Inside):
    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(view.cut.keep) + len(view.visual_index_N) - view.cut.keep + 1)


@dataclass(frozen=True, kw_only=True)
class InsideUndefined(Inside):
    def rank(self, view: LayerView) -> torch.Tensor:
        return view.hidden_LD[view.visual_index_N, 0] * torch.nan


@dataclass(frozen=True, kw_only=True)
class InsideTooMany(Inside):
    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(view.cut.keep + 1))


@dataclass(frozen=True, kw_only=True)
class InsideFewer(Inside):
    """No fault: a cut allows, and a method may keep less."""

    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(view.cut.keep - 2))


@dataclass(frozen=True, kw_only=True)
class NeverCuts(Inside):
    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return (Cut(layer=num_layers, keep=1, probe=0),)


@dataclass(frozen=True, kw_only=True)
class FailsLater(Method):
    """Prunes `images_left` images, then fails."""

    images_left: ClassVar[int] = 0

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        FailsLater.images_left -= 1
        if FailsLater.images_left < 0:
            raise RuntimeError("not now")
        return Reduction(torch.arange(keep))


REASONS = {
    Raises: "ZeroDivisionError: no such luck",
    Table: "ValueError: Table.reduce: indices_K must be 1-D int64, got torch.int64 of shape (1, 5)",
    ShortRows: "ValueError: ShortRows.reduce: embeds_KD must have shape (5, 32), got (4, 32)",
    Nothing: "ValueError: Nothing.reduce: must return a Reduction with indices_K, got NoneType",
    Twice: "ValueError: Twice.reduce: a token is kept twice",
    Outside: "ValueError: Outside.reduce: an index is outside -1..143",
    Undefined: "ValueError: Undefined.reduce: 144 of 144 scores are NaN",
    TooMany: "ValueError: TooMany.reduce: 6 rows for a budget of 5",
    InsideTwice: "ValueError: InsideTwice.select: a visual row is kept twice",
    InsideOutside: "ValueError: InsideOutside.select: an index is not one of the visual rows",
    InsideUndefined: "ValueError: InsideUndefined.select: scores are NaN",
    InsideTooMany: "ValueError: InsideTooMany.select: 6 rows at a cut to 5 of 144",
    NeverCuts: "ValueError: NeverCuts.cuts: Cut(layer=6, keep=1, probe=0, merged=0) must come after",
}
"""The reason that a run prints for each."""


def named(method: type[Method]) -> str:
    return f"bad-{method.__name__}"


def entry_points() -> Mapping[str, EntryPoint]:
    """Return the entry points that a package of these methods would have."""
    return {
        named(method): EntryPoint(named(method), f"bad_methods:{method.__name__}", "dpbench.methods")
        for method in (*REASONS, FailsLater, InsideFewer)
    }
