"""How tables of `dpbench probe` name and write what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dpbench.probe.statistics import Interval
from dpbench.storage.record import Probe

REFERENCE = "diffprune"


def find_reference(line: Probe, lines: Sequence[Probe]) -> Probe | None:
    """Return DiffPrune's line at the same budget, temperature and the rest; None if it was not measured."""
    wanted = {**line.setting, "way": REFERENCE}
    return next((other for other in lines if other.setting == wanted), None)


def describe(line: Probe) -> str:
    """Return the model, where the scorer sits and which scorer it is."""
    scorer = "fresh scorer" if line.checkpoint is None else f"{line.checkpoint} at step {line.step}"
    return f"{line.model}, scorer behind the {_PLACES[line.site]}, {scorer}, {line.shared['data']}"


_PLACES = {"projector": "projector", "patch": "patch embedding"}


def group_heading(line: Probe) -> str:
    """Return the budget and temperature of a group of rows."""
    return f"keep {line.setting['keep']}, tau {line.setting['tau']:g}"


def interval(found: Interval, digits: int, *, unit: str = "") -> str:
    """Return an estimate with its interval, or with what keeps it from having one."""
    if not math.isfinite(found.value):
        return "not finite"
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return f"{found.value:.{digits}f}{unit} [unbounded]"
    return f"{found.value:.{digits}f}{unit} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def flat(values: Mapping[str, Interval | float | None]) -> dict[str, float | None]:
    """Return values for a frame: an interval is three columns, its ends behind it."""
    columns: dict[str, float | None] = {}
    for name, value in values.items():
        if isinstance(value, Interval):
            columns |= {name: value.value, f"{name} low": value.low, f"{name} high": value.high}
        else:
            columns[name] = value
    return columns


def scientific(value: float) -> str:
    """Return a number with two significant digits, as 0.42, 33 or 9.7e+04."""
    return f"{value:.2g}"
