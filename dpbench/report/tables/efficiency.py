"""The efficiency table: FLOPs, milliseconds, bytes and joules per method; Table 4 of the DiffPrune paper and more."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from dpbench import backbones
from dpbench.report.runs import format_params
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import at_layers
from dpbench.report.tables.table import DASH, Cell, Footnotes, Mark, Row, Section, group_row, number, ranked
from dpbench.storage.record import Profile

VOLATILE = ("gpu_clock_mhz",)
"""What of an environment changes from moment to moment; `Profile.monitor` has it."""
CONDITIONS = ("backbone", "weights", "configuration", "batch_size", "num_images", "image_hw")
STAGES = {
    "encode": "Encode",
    "signals": "Signals",
    "reduce": "Reduce",
    "splice": "Splice",
    "prefill": "Prefill",
    "ttft": "TTFT",
    "decode": "Decode/token",
}
MIB, TERA, GIGA = 2**20, 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Measured:
    """One row's numbers; what was not measured is None.

    Attributes:
        profile: where they come from.
        speedup: time to first token of `none`, timed in turn with this one, over this one's.
    """

    profile: Profile
    speedup: float | None

    def quantile(self, stage: str, share: float) -> float | None:
        """Return a quantile of a stage's milliseconds."""
        values = self.profile.stages_ms.get(stage)
        return float(np.quantile(values, share)) if values else None

    @property
    def flops(self) -> int | None:
        """Return the FLOPs up to the first token."""
        return self.profile.stages_flops.get("ttft")

    @property
    def peak_mib(self) -> float | None:
        """Return the most memory above the weights, MiB."""
        return max(self.profile.peak_bytes.values()) / MIB if self.profile.peak_bytes else None

    @property
    def kv_mib(self) -> float | None:
        """Return the key-value cache after prefill, MiB."""
        return sum(self.profile.kv_bytes_per_layer) / MIB if self.profile.kv_bytes_per_layer else None

    @property
    def joules(self) -> float | None:
        """Return the energy of a first token above idle."""
        return self.profile.joules.get("first_token")


def sections(profiles: Iterable[Profile]) -> list[Section]:
    """Return one table per machine, software, configuration, batch and image; never a mixed one."""
    profiles = list(profiles)
    return [section(group, profiles) for group in groups(profiles)]


def groups(profiles: Iterable[Profile]) -> list[list[Profile]]:
    """Return profiles by the conditions they were taken under, of each method and budget the newest."""
    found: dict[str, list[Profile]] = defaultdict(list)
    for each in profiles:
        found[json.dumps(conditions(each), sort_keys=True, default=str)].append(each)
    return [sorted(_newest(group), key=_order) for group in found.values()]


def _newest(group: Sequence[Profile]) -> Iterable[Profile]:
    return {(each.budget, _order(each)): each for each in sorted(group, key=_started)}.values()


def _started(each: Profile) -> str:
    """Return when its run began; what is not known comes first."""
    return each.started or ""


def conditions(each: Profile) -> dict[str, Any]:
    """Return everything that must agree within one column of times."""
    fixed = {name: value for name, value in each.environment.items() if name not in VOLATILE}
    tiles = backbones.find(
        each.backbone
    ).tiles  # whose newlines count as text for some methods and are dropped by others
    text = {} if tiles else {"num_text": each.num_text}
    return {**{name: getattr(each, name) for name in CONDITIONS}, **text, **_flat(fixed)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def section(group: Sequence[Profile], profiles: Sequence[Profile] = ()) -> Section:
    """Return the table of profiles taken under the same conditions.

    Args:
        group: one of `groups`.
        profiles: all that are reported: what sets this table apart from the first, and the unpruned times of each run.
    """
    unpruned = _unpruned(profiles or group, conditions(group[0]))
    rows = [Measured(each, _speedup(each, unpruned.get(each.started))) for each in group]
    other = profiles[0] if profiles and conditions(profiles[0]) != conditions(group[0]) else None
    stages = [name for name in STAGES if any(row.profile.stages_ms.get(name) for row in rows)]
    unit = TERA if max((row.flops or 0 for row in rows), default=0) >= TERA / 2 else GIGA
    columns, footnotes = _columns(rows, stages, unit), Footnotes()
    names = ("Method", *columns)
    cells = {id(row): [text(row) for text in columns.values()] for row in rows}
    shown = [name for at, name in enumerate(columns) if any(cells[id(row)][at] != DASH for row in rows)]
    at = [list(columns).index(name) for name in shown]
    marks = _marks(rows, names)
    latest = max(map(_started, group))
    lines: list[Row] = []
    budget = None
    for row in rows:
        if row.profile.budget != budget:
            budget = row.profile.budget
            lines.append(group_row(_budget(budget), len(shown) + 1))
        refs = tuple(footnotes.letter(flag) for flag in (*row.profile.flags, *_earlier(row.profile, latest)))
        first = Cell(row.profile.method + format_params(row.profile.params), refs=refs)
        rest = [Cell(cells[id(row)][i], marks.get(names[i + 1], {}).get(id(row), "")) for i in at]
        lines.append(Row((first, *rest)))
    return Section(
        _heading(group[0], rows),
        frame_of([_numbers(row, stages) for row in rows]),
        (*_notes(group[0], rows, other), *footnotes.notes()),
        ("Method", *shown),
        tuple(lines),
    )


def _order(each: Profile) -> tuple[Any, ...]:
    try:
        size = -float(each.budget.strip("%-"))
    except ValueError:
        size = 0.0
    return each.method != "none", size, each.method, json.dumps(each.params, sort_keys=True), each.num_visual


def _unpruned(profiles: Iterable[Profile], same: Mapping[str, Any]) -> dict[str | None, Profile]:
    """Return the `none` of each run under some conditions; of a run with prompts of several lengths there is none."""
    found: dict[str | None, dict[float, Profile]] = defaultdict(dict)
    for each in profiles:
        if each.method == "none" and conditions(each) == same:
            found[each.started][each.num_visual] = each
    return {started: next(iter(sizes.values())) for started, sizes in found.items() if len(sizes) == 1}


def _speedup(each: Profile, none: Profile | None) -> float | None:
    ours, theirs = each.stages_ms.get("ttft"), none.stages_ms.get("ttft") if none else None
    return median(theirs) / median(ours) if ours and theirs else None


def _earlier(each: Profile, latest: str) -> Iterable[str]:
    """Say of times that they were not taken in turn with the newest."""
    if each.stages_ms and _started(each) != latest:
        yield "timed in an earlier run" + (f", begun {each.started}" if each.started else "")


def _columns(rows: Sequence[Measured], stages: Sequence[str], unit: float) -> dict[str, Any]:
    """Return, by heading, what prints a row's cell."""
    letter = "T" if unit == TERA else "G"
    found: dict[str, Any] = {
        "Loc.": lambda row: _location(row.profile) or DASH,
        "Tokens": lambda row: number(row.profile.num_visual),
        f"{letter}FLOP": lambda row: number(row.flops and row.flops / unit, 2),
    }
    for stage in stages:
        found[f"{STAGES[stage]} (ms)"] = lambda row, stage=stage: _spread(row, stage)
    return found | {
        "Speed-up": lambda row: f"{row.speedup:.2f}x" if row.speedup else DASH,
        "Peak (MiB)": lambda row: number(row.peak_mib),
        "KV (MiB)": lambda row: number(row.kv_mib, 2),
        "Energy (J)": lambda row: number(row.joules, 2),
    }


def _spread(row: Measured, stage: str) -> str:
    """Return median [p10-p90]; a stage that did not happen is a dash."""
    middle, low, high = (row.quantile(stage, share) for share in (0.5, 0.1, 0.9))
    if middle is None or low is None or high is None:
        return DASH
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


def _marks(rows: Sequence[Measured], names: Sequence[str]) -> dict[str, dict[int, Mark]]:
    """Mark the two fastest per budget, `none` apart."""
    found: dict[str, dict[int, Mark]] = {}
    for budget in dict.fromkeys(row.profile.budget for row in rows):
        same = [row for row in rows if row.profile.budget == budget and row.profile.method != "none"]
        lower = {id(row): None if row.quantile("ttft", 0.5) is None else -_known(row) for row in same}
        found.setdefault("TTFT (ms)", {}).update(ranked(lower, 2))
        found.setdefault("Speed-up", {}).update(ranked({id(row): row.speedup for row in same}, 2))
    return {name: marks for name, marks in found.items() if name in names}


def _known(row: Measured) -> float:
    value = row.quantile("ttft", 0.5)
    assert value is not None
    return value


def _location(each: Profile) -> str | None:
    if each.method == "none" or not each.visual_tokens_per_layer:
        return None
    return at_layers(each.visual_tokens_per_layer)


def _budget(budget: str) -> str:
    return "Unpruned" if budget == "all" else f"Pruning rate {budget[1:]}" if "%" in budget else f"Keep {budget}"


def _numbers(row: Measured, stages: Sequence[str]) -> dict[str, Any]:
    each = row.profile
    found: dict[str, Any] = {
        "Method": each.method + format_params(each.params),
        "Budget": each.budget,
        "Location": _location(each),
        "Tokens": each.num_visual,
        "FLOPs": row.flops,
    }
    for stage in stages:
        for name, share in (("ms", 0.5), ("p10 ms", 0.1), ("p90 ms", 0.9)):
            found[f"{STAGES[stage]} {name}"] = row.quantile(stage, share)
    found |= {f"{name} FLOPs": value for name, value in each.stages_flops.items() if name != "ttft"}
    found |= {"Speed-up": row.speedup, "Peak bytes": max(each.peak_bytes.values(), default=None)}
    kv = sum(each.kv_bytes_per_layer) if each.kv_bytes_per_layer else None
    return found | {"KV bytes": kv, "Energy J": row.joules, "Flags": "; ".join(each.flags) or None}


def _heading(first: Profile, rows: Sequence[Measured]) -> str:
    found, (height, width) = first.environment, first.image_hw
    device = found.get("gpu", found.get("cpu", "shapes alone"))
    versions = found.get("versions", {})
    torch = f", torch {versions['torch']}" if "torch" in versions else ""
    repeats = [len(row.profile.stages_ms["ttft"]) for row in rows if row.profile.stages_ms.get("ttft")]
    times = f"median of at least {min(repeats)}" if repeats else "not timed"
    text = min(row.profile.num_text for row in rows)
    dtype = f", {found['dtype']}" if "dtype" in found else ""
    images = "image" if first.num_images == 1 else f"{first.num_images} images"
    return (
        f"{first.backbone}, time to first token on {device}{torch}{dtype}, {first.configuration}, batch size "
        f"{first.batch_size}, {images} {height}x{width}, {text} other positions, {times}"
    )


def _notes(first: Profile, rows: Sequence[Measured], other: Profile | None) -> Iterable[str]:
    if any(row.profile.stages_ms for row in rows):
        yield (
            "Milliseconds: median [10th-90th percentile]. TTFT = encode + reduce + splice + prefill. Reduce is all "
            "that a method adds: its signals, shown apart as well, and its ranking inside the LLM."
        )
    if any(row.flops for row in rows):
        yield "FLOPs count 2 per multiply-add: encoder, projector, pruner, decoder and LM head (last position)."
    if any(row.joules for row in rows):
        yield "Energy: of a first token, above what the card draws idle."
    if any(row.speedup for row in rows):
        yield "Speed-up: TTFT of none over the row's, timed in turn."
    elif any(row.profile.stages_ms for row in rows):
        several = sum(row.profile.method == "none" for row in rows) > 1
        why = (
            "prompts of several lengths are in one table" if several else "none was not measured under these conditions"
        )
        yield f"No speed-up: {why}."
    if first.configuration == "cuda-graph":
        yield "Inside a CUDA graph nothing is told apart: signals are in encode, rankings inside the LLM in prefill."
    if first.weights == "random":
        yield "Random weights: times and FLOPs mean something, answers would not."
    if other is not None:
        yield (
            f"Shown apart from {other.configuration}, {other.environment.get('gpu', other.environment.get('cpu'))}: "
            + ("; ".join(_unlike(conditions(first), conditions(other))) + ".")
        )


def _unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    """Say which conditions differ."""
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            yield f"{name} is {ours.get(name, 'not recorded')}, there {theirs.get(name, 'not recorded')}"
