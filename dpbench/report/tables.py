"""The comparison table and the profile table: statistics are computed here, when records are read, and nowhere else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import pandas as pd

from dpbench import record, tasks
from dpbench.errors import ConfigError
from dpbench.record import Profile, Record

RETENTION = "Retention"
SHARED = (
    "backbone",
    "weights",
    "revision",
    "quantize",
    "prompt",
    "ocr",
    "dtype",
    "attention",
    "anyres",
    "newline",
    "min_pixels",
    "max_pixels",
    "budget_kind",
    "limit",
)
"""Cell fields that must agree within one table."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table with its heading and footnotes."""

    heading: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def runs_under(root: Path) -> list[Path]:
    """Return the run folders below a results folder.

    Raises:
        ConfigError: there are none.
    """
    found = sorted({path.parent for name in ("records.jsonl", "profile.jsonl") for path in root.glob(f"*/{name}")})
    if not found:
        raise ConfigError(f"there are no records under {root}; run something first, or give --run FOLDER")
    return found


def report(folders: Sequence[Path], form: str) -> str:
    """Return every table of these runs.

    Raises:
        ConfigError: a folder holds neither records nor profiles.
        RecordError: a line cannot be read.
    """
    sections: list[Section] = []
    for folder in folders:
        records = record.read(folder / "records.jsonl", Record)
        profiles = record.read(folder / "profile.jsonl", Profile)
        if not records and not profiles:
            raise ConfigError(f"--run: {folder} holds no records.jsonl and no profile.jsonl")
        sections += comparison_sections(records)
        sections += profile_sections(profiles)
    parts = [render(section, form) for section in sections]
    if form == "csv" and len(parts) > 1:
        parts = [f"# {section.heading}\n{part}" for section, part in zip(sections, parts, strict=True)]
    return "\n\n".join(parts)


def comparison_sections(records: Iterable[Record]) -> list[Section]:
    """Return one comparison table per backbone and protocol."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for each in record.newest(records):
        groups[_protocol(each)].append(each)
    return [_comparison(group) for _, group in sorted(groups.items())]


def _protocol(each: Record) -> str:
    shared = {name: each.cell.get(name) for name in SHARED}
    shared["weights"] = each.cell["fingerprints"].get("weights")
    return repr(shared)


def _comparison(group: Sequence[Record]) -> Section:
    scores: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for each in group:
        scores[_row(each.cell)][each.cell["task"]].append(each.score)
        if each.visual_tokens_per_layer:
            tokens[_row(each.cell)].append(mean(each.visual_tokens_per_layer))
    names = [name for name in tasks.TASKS if any(name in row for row in scores.values())]
    table = {key: {name: mean(values) for name, values in row.items()} for key, row in scores.items()}
    full = next((row for key, row in table.items() if key[2] == "none"), {})
    rows = [
        {
            "Method": _method_label(key),
            "Tokens": round(mean(tokens[key]), 1) if tokens[key] else None,
            **{tasks.TASKS[name].title: table[key].get(name) for name in names},
            RETENTION: retention(table[key], full),
        }
        for key in sorted(table, key=_order)
    ]
    return Section(_heading(group), pd.DataFrame(rows), tuple(_notes(group, full)))


def _row(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return cell["keep"], cell["prune_rate"], cell["method"], json.dumps(cell["params"], sort_keys=True)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    keep, rate, method, params = key
    return (method != "none", -(keep or 0), rate or 0, method, params)


def _method_label(key: tuple[Any, ...]) -> str:
    keep, rate, method, params = key
    budget = "" if keep is None and rate is None else f" @ {keep}" if keep is not None else f" @ -{100 * rate:.1f}%"
    return f"{method}{_options(json.loads(params))}{budget}"


def _options(params: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in params.items())})" if params else ""


def retention(scores: Mapping[str, float], unpruned: Mapping[str, float]) -> float | None:
    """Return the mean over benchmarks of score / unpruned score in percent, or None where nothing can be compared."""
    ratios = [100 * scores[name] / unpruned[name] for name in scores if unpruned.get(name)]
    return mean(ratios) if ratios else None


def _heading(group: Sequence[Record]) -> str:
    cell = group[0].cell
    limit = "all samples" if cell["limit"] is None else f"{cell['limit']} samples a task"
    device = ", ".join(sorted({str(each.environment.get("gpu", each.environment["cpu"])) for each in group}))
    return f"{cell['backbone']}, {limit}, {cell['dtype']}, {cell['attention']} attention; answered on {device}"


def _notes(group: Sequence[Record], full: Mapping[str, float]) -> Iterable[str]:
    yield "Scores 0-100; MME as share of its maximum. Tokens: visual tokens read, mean over layers and samples."
    if full:
        yield "Retention: mean over benchmarks of score / score of none, in percent."
    else:
        yield "No retention: this run has no cell of method none."
    failed = sum(each.num_failed for each in group)
    if failed:
        yield f"{failed} samples failed and count as wrong; the journals say why."
    seeds = {each.cell["seed"] for each in group}
    if len(seeds) > 1:
        yield f"Mean over {len(seeds)} seeds."


def profile_sections(profiles: Iterable[Profile]) -> list[Section]:
    """Return median milliseconds and FLOPs per stage: one table per machine and software, never a mixed one."""
    groups: dict[str, list[Profile]] = defaultdict(list)
    for each in profiles:
        groups[_conditions(each)].append(each)
    return [_profile_section(group) for group in groups.values()]


def _conditions(each: Profile) -> str:
    """Return everything that must agree within one table of times; the momentary clock may differ."""
    fixed = {name: value for name, value in each.environment.items() if name != "gpu_clock_mhz"}
    return repr((each.backbone, each.weights, each.warmups, sorted(fixed.items(), key=str)))


def _profile_section(group: Sequence[Profile]) -> Section:
    latest = {(each.method, str(each.params), each.budget): each for each in group}.values()
    found, repeats = group[0].environment, {len(each.stages_ms["total"]) for each in latest}
    torch_version = found.get("versions", {}).get("torch", "")
    heading = (
        f"{group[0].backbone}, time to first token on {found.get('gpu', found['cpu'])}, torch {torch_version}, "
        f"batch size 1, median of {min(repeats)}"
    )
    note = "FLOPs count 2 per multiply-add: encoder, projector, pruner, decoder and LM head (last position)."
    return Section(heading, pd.DataFrame([_profile_row(each) for each in latest]), (note, *_unstable(latest)))


def _profile_row(each: Profile) -> dict[str, Any]:
    times = {f"{stage.capitalize()} ms": median(values) for stage, values in each.stages_ms.items()}
    flops = {f"{stage.capitalize()} GFLOP": value / 1e9 for stage, value in each.stages_flops.items()}
    label = f"{each.method}{_options(each.params)}{'' if each.budget == 'all' else f' @ {each.budget}'}"
    return {"Method": label, "Tokens": each.num_visual, **times, **flops}


def _unstable(profiles: Iterable[Profile]) -> Iterable[str]:
    """Name the rows whose repetitions scatter: the middle half wider than a tenth of the median."""
    for each in profiles:
        values = sorted(each.stages_ms["total"])
        spread = values[(3 * len(values)) // 4 - 1] - values[len(values) // 4] if len(values) >= 4 else 0.0
        if spread > 0.1 * median(values):
            share = round(100 * spread / median(values))
            yield f"Unstable: {each.method} @ {each.budget} scatters by {share} % of its median; use an idle machine."


def render(section: Section, form: Literal["markdown", "csv"] | str) -> str:
    """Return a table as Markdown with heading and footnotes, or as CSV."""
    if form == "csv":
        return section.frame.to_csv(index=False).strip()
    from tabulate import tabulate

    body = tabulate(
        section.frame.astype(object).where(section.frame.notna(), None).values.tolist(),
        headers=list(section.frame.columns),
        tablefmt="github",
        floatfmt=".1f",
        missingval="-",
    )
    return "\n".join([f"### {section.heading}", "", body, "", *section.notes])
