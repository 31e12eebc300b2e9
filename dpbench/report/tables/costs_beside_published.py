"""Our profiles beside the paper's Table 4: FLOPs, milliseconds and the speed-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dpbench.report.tables import published
from dpbench.report.tables.published import PaperTable
from dpbench.report.tables.same_quantity import gpu_of, may_explain, why_not_at_all, why_not_times
from dpbench.report.tables.side_by_side import Pair, is_near, share_removed, side_by_side
from dpbench.report.tables.table import Section
from dpbench.storage.record import Profile


def costs(profiles: Sequence[Profile], heading: str) -> Section:
    """Return Table 4 beside profiles that were taken under one set of conditions.

    Args:
        profiles: at least one.
        heading: of their own table.
    """
    table, first = published.load(4), profiles[0]
    none = next((profile for profile in profiles if profile.method == "none"), None)
    titles = {**table.data["headings"], "speedup": "Speed-up"}
    ours = {
        "backbone": first.backbone,
        "dtype": first.environment.get("dtype"),
        "gpu": gpu_of(first.environment),
        "batch_size": first.batch_size,
        "attention": first.environment.get("attention"),
    }
    notes = ["Speed-up: time to first token of the full model over the row's."]
    if first.backbone == table.backbone:
        notes += may_explain(table, {**ours, "configuration": first.configuration})
    return side_by_side(
        table,
        heading,
        [_cost_pair(profiles, none, table, row) for row in table.rows],
        titles,
        notes,
        digits=dict.fromkeys(titles, 2),
        refusal=why_not_at_all(table, ours),
    )


def _cost_pair(profiles: Sequence[Profile], none: Profile | None, table: PaperTable, row: Mapping[str, Any]) -> Pair:
    profile = _profile(profiles, row, table, none.num_visual if none else None)
    full = table.rows[0]["values"]["ttft"]
    theirs = {**row["values"], "speedup": full / row["values"]["ttft"]}
    ours = _cost(profile, none) if profile else {}
    why = {}
    if row["method"] in table.data["not_compared"]:
        why = dict.fromkeys(ours, table.data["not_compared"][row["method"]])
    elif profile and (reason := why_not_times(table, profile.environment)):
        why = {name: reason for name in row["values"] if name != "tflops"}
    note = published.note_on(table, row)
    return Pair(row["row"], "", theirs, ours, note, published.why_not_run(table, row) is not None, why)


def _profile(
    profiles: Sequence[Profile], row: Mapping[str, Any], table: PaperTable, total: float | None
) -> Profile | None:
    """Return our profile of the same method at the same share of tokens."""
    rate = 1 - row["budget"] / table.data["num_visual"]
    for profile in profiles:
        if profile.method == row["method"] and (
            profile.method == "none" or is_near(share_removed(profile.budget_request, total), rate)
        ):
            return profile
    return None


def _cost(profile: Profile, none: Profile | None) -> dict[str, float]:
    """Return the median milliseconds of each stage, TFLOPs and the speed-up over the unpruned model."""
    found = {stage: median(values) for stage, values in profile.stages_ms.items() if values}
    if "ttft" in profile.stages_flops:
        found["tflops"] = profile.stages_flops["ttft"] / 1e12
    if none and none.stages_ms.get("ttft") and "ttft" in found:
        found["speedup"] = median(none.stages_ms["ttft"]) / found["ttft"]
    return found
