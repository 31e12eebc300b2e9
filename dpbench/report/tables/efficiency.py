"""The efficiency table: FLOPs, milliseconds, bytes and joules per method; Table 4 of the DiffPrune paper and more."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from dpbench import backbones
from dpbench.measure.stability import MAX_SPREAD
from dpbench.report import spending
from dpbench.report.groups import OVER_BUDGET
from dpbench.report.marks import REFERENCES, rank
from dpbench.report.runs import format_params
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import at_layers
from dpbench.report.tables.table import DASH, Cell, Footnotes, Mark, Row, Section, group_row, number
from dpbench.storage.record import Profile

VOLATILE = ("gpu_clock_mhz",)
"""Entries of an environment that change all the time; `Profile.monitor` records them."""
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
SCATTERS = "scatters"
"""Begins the flag of a row whose times scatter."""
MEDIAN = 0.5
MIB, TERA, GIGA = 2**20, 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Measured:
    """One row's numbers; those that were not measured are None.

    Attributes:
        profile: source of the numbers.
        speedup: time to first token of `none`, timed in turn with this row, divided by this row's.
    """

    profile: Profile
    speedup: float | None

    def quantile(self, stage: str, share: float) -> float | None:
        """Return a quantile of a stage's milliseconds; a single value has no other than the median."""
        values = self.profile.stages_ms.get(stage)
        if not values or (len(values) == 1 and share != MEDIAN):
            return None
        return float(np.quantile(values, share))

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


Text = Callable[[Measured], str]
"""Formats a row's cell of one column."""


def sections(profiles: Iterable[Profile]) -> list[Section]:
    """Return one table per machine, software, configuration, batch and image; never a mixed one."""
    profiles = list(profiles)
    return [section(group, profiles) for group in groups(profiles)]


def groups(profiles: Iterable[Profile]) -> list[list[Profile]]:
    """Group profiles by the conditions of their measurement; only the newest of a method and budget counts."""
    by_condition: dict[str, list[Profile]] = defaultdict(list)
    for profile in profiles:
        by_condition[json.dumps(conditions(profile), sort_keys=True, default=str)].append(profile)
    return [sorted(_newest(group), key=_sort_key) for group in by_condition.values()]


def _newest(group: Sequence[Profile]) -> Iterable[Profile]:
    return {(profile.budget, _sort_key(profile)): profile for profile in sorted(group, key=_started)}.values()


def _started(profile: Profile) -> str:
    """Return when its run began; empty if unknown, which sorts first."""
    return profile.started or ""


def conditions(profile: Profile) -> dict[str, Any]:
    """Return everything that must agree within one column of times."""
    fixed = {name: value for name, value in profile.environment.items() if name not in VOLATILE}
    # Where images have tiles, their newlines count as text for some methods and are dropped by others: the number of
    # text positions then differs between rows that belong together.
    text = {} if backbones.find(profile.backbone).tiles else {"num_text": profile.num_text}
    return {**{name: getattr(profile, name) for name in CONDITIONS}, **text, **_flat(fixed)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def section(group: Sequence[Profile], profiles: Sequence[Profile] = ()) -> Section:
    """Return the table of profiles taken under the same conditions.

    Args:
        group: one of `groups`.
        profiles: all profiles of the report, which give the unpruned times and the conditions of the first table.
    """
    unpruned = _unpruned(profiles or group, conditions(group[0]))
    rows = [Measured(profile, _speedup(profile, unpruned.get(profile.started))) for profile in group]
    other = profiles[0] if profiles and conditions(profiles[0]) != conditions(group[0]) else None
    stages = [name for name in STAGES if any(row.profile.stages_ms.get(name) for row in rows)]
    columns, footnotes = _columns(rows, stages), Footnotes()
    lines = tuple(_lines(rows, columns, footnotes))
    return Section(
        _heading(group[0], rows),
        frame_of([_numbers(row, stages) for row in rows]),
        (*_notes(group[0], rows, other), *footnotes.notes()),
        ("Method", *columns),
        lines,
        "efficiency",
    )


def _lines(rows: Sequence[Measured], columns: Mapping[str, Text], footnotes: Footnotes) -> Iterable[Row]:
    """Yield the table's lines: a heading per budget, then its rows."""
    over = _overspenders(rows)
    marks, latest, title = _marks(rows, over), max(_started(row.profile) for row in rows), None
    for row in sorted(rows, key=lambda row: (_sort_key(row.profile)[:2], id(row) in over)):
        heading = f"{OVER_BUDGET}: " * (id(row) in over) + _budget_heading(row.profile.budget)
        if heading != title:
            title = heading
            yield group_row(heading, len(columns) + 1)
        doubts = (*map(_doubt, row.profile.flags), *_earlier(row.profile, latest))
        refs = tuple(footnotes.letter(doubt) for doubt in doubts)
        first = Cell(row.profile.method + format_params(row.profile.params), refs=refs)
        rest = [Cell(text(row), marks.get(name, {}).get(id(row), "")) for name, text in columns.items()]
        yield Row((first, *rest))


def _doubt(flag: str) -> str:
    """Return a flag as a footnote: by how much times scatter is in the Flags of CSV and JSON, and told once here."""
    if flag.startswith(SCATTERS):
        return f"{SCATTERS}: 90th over 10th percentile is more than {MAX_SPREAD}"
    return flag


def _sort_key(profile: Profile) -> tuple[Any, ...]:
    budget = profile.budget_request
    return (
        profile.method != "none",
        -(budget.keep or 100 * (budget.prune_rate or 0.0)),
        profile.method,
        json.dumps(profile.params, sort_keys=True),
        profile.num_visual,
    )


def _unpruned(profiles: Iterable[Profile], same: Mapping[str, Any]) -> dict[str | None, Profile]:
    """Return the `none` of each run under some conditions; a run with prompts of several lengths is dropped."""
    by_run: dict[str | None, dict[float, Profile]] = defaultdict(dict)
    for profile in profiles:
        if profile.method == "none" and conditions(profile) == same:
            by_run[profile.started][profile.num_visual] = profile
    return {started: next(iter(sizes.values())) for started, sizes in by_run.items() if len(sizes) == 1}


def _speedup(profile: Profile, none: Profile | None) -> float | None:
    ours, theirs = profile.stages_ms.get("ttft"), none.stages_ms.get("ttft") if none else None
    return median(theirs) / median(ours) if ours and theirs else None


def _earlier(profile: Profile, latest: str) -> Iterable[str]:
    """Yield a footnote for times that were not measured in turn with the newest."""
    if profile.stages_ms and _started(profile) != latest:
        yield "timed in an earlier run" + (f", begun {profile.started}" if profile.started else "")


def _columns(rows: Sequence[Measured], stages: Sequence[str]) -> dict[str, Text]:
    """Return the columns by heading, each as a function from a row to its text; empty columns are dropped."""
    unit, letter = (TERA, "T") if max((row.flops or 0 for row in rows), default=0) >= TERA / 2 else (GIGA, "G")
    columns: dict[str, Text] = {
        "Loc.": lambda row: _location(row.profile) or DASH,
        "Tokens": lambda row: number(row.profile.num_visual),
        f"{letter}FLOP": lambda row: number(row.flops and row.flops / unit, 2),
        **{f"{STAGES[stage]} (ms)": partial(_format_quantiles, stage=stage) for stage in stages},
        "Speed-up": lambda row: f"{row.speedup:.2f}x" if row.speedup else DASH,
        "Peak (MiB)": lambda row: number(row.peak_mib),
        "KV (MiB)": lambda row: number(row.kv_mib, 2),
        "Energy (J)": lambda row: number(row.joules, 2),
    }
    return {heading: text for heading, text in columns.items() if any(text(row) != DASH for row in rows)}


def _format_quantiles(row: Measured, stage: str) -> str:
    """Return median [p10-p90], with a dash for what a single measurement does not have, or for all of it."""
    middle, low, high = (row.quantile(stage, share) for share in (MEDIAN, 0.1, 0.9))
    if middle is None:
        return DASH
    return f"{middle:.2f} [{DASH if low is None else f'{low:.2f}-{high:.2f}'}]"


def _overspenders(rows: Sequence[Measured]) -> frozenset[int]:
    """Return which rows read more than their budget."""
    num = max((row.profile.num_visual for row in rows if row.profile.method == "none"), default=None)
    return frozenset(id(row) for row in rows if spending.profile_overspends(row.profile, num))


def _marks(rows: Sequence[Measured], over: frozenset[int]) -> dict[str, dict[int, Mark]]:
    """Mark the two fastest per budget, references and rows that overspend apart; by column and row."""
    marks: dict[str, dict[int, Mark]] = {"TTFT (ms)": {}, "Speed-up": {}}
    for budget in dict.fromkeys(row.profile.budget for row in rows):
        same = [row for row in rows if row.profile.budget == budget and id(row) not in over]
        pruned = [row for row in same if row.profile.method not in REFERENCES]
        times = {id(row): row.quantile("ttft", MEDIAN) for row in pruned}
        # `rank` marks the largest, and the fastest is the smallest.
        marks["TTFT (ms)"] |= rank({key: None if time is None else -time for key, time in times.items()}, 2)
        marks["Speed-up"] |= rank({id(row): row.speedup for row in pruned}, 2)
    return marks


def _location(profile: Profile) -> str | None:
    if profile.method == "none" or not profile.visual_tokens_per_layer:
        return None
    return at_layers(profile.visual_tokens_per_layer)


def _budget_heading(budget: str) -> str:
    return "Unpruned" if budget == "all" else f"Pruning rate {budget[1:]}" if "%" in budget else f"Keep {budget}"


def _numbers(row: Measured, stages: Sequence[str]) -> dict[str, Any]:
    profile = row.profile
    numbers: dict[str, Any] = {
        "Method": profile.method + format_params(profile.params),
        "Budget": profile.budget,
        "Location": _location(profile),
        "Tokens": profile.num_visual,
        "FLOPs": row.flops,
    }
    for stage in stages:
        for name, share in (("ms", MEDIAN), ("p10 ms", 0.1), ("p90 ms", 0.9)):
            numbers[f"{STAGES[stage]} {name}"] = row.quantile(stage, share)
    numbers |= {f"{name} FLOPs": value for name, value in profile.stages_flops.items() if name != "ttft"}
    numbers |= {"Speed-up": row.speedup, "Peak bytes": max(profile.peak_bytes.values(), default=None)}
    kv = sum(profile.kv_bytes_per_layer) if profile.kv_bytes_per_layer else None
    return numbers | {"KV bytes": kv, "Energy J": row.joules, "Flags": "; ".join(profile.flags) or None}


def _heading(first: Profile, rows: Sequence[Measured]) -> str:
    environment, (height, width) = first.environment, first.image_hw
    device = environment.get("gpu", environment.get("cpu", "shapes alone"))
    versions = environment.get("versions", {})
    torch = f", torch {versions['torch']}" if "torch" in versions else ""
    repeats = [len(row.profile.stages_ms["ttft"]) for row in rows if row.profile.stages_ms.get("ttft")]
    times = f"median of at least {min(repeats)}" if repeats else "not timed"
    text = min(row.profile.num_text for row in rows)
    dtype = f", {environment['dtype']}" if "dtype" in environment else ""
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
        yield "A CUDA graph is timed as a whole: signals are in encode, rankings inside the LLM in prefill."
    if first.weights == "random":
        yield "Random weights: times and FLOPs are meaningful, answers would not be."
    if other is not None:
        yield (
            f"Shown apart from {other.configuration}, {other.environment.get('gpu', other.environment.get('cpu'))}: "
            + ("; ".join(_list_differences(conditions(first), conditions(other))) + ".")
        )


def _list_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    """Yield the conditions that differ."""
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            yield f"{name} is {ours.get(name, 'not recorded')}, there {theirs.get(name, 'not recorded')}"
