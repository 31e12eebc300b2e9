"""Print an estimate, fitted to the terminal."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from dpbench import backbones
from dpbench.estimate.cost import Memory
from dpbench.estimate.overview import Overview, Part
from dpbench.estimate.rates import Seconds, estimate_seconds, on_papers_gpu
from dpbench.estimate.steps import Item, missing_commands
from dpbench.manifest.presets import describe
from dpbench.report.terminal.shell import wrap_command

GB, MB = 1e9, 1e6
PAPERS_GPU_BYTES = 48 * GB
"""Memory of the paper's RTX A6000, by its data sheet."""
WIDTHS = (60, 120)
"""The narrowest and widest that text is set."""


def format_overview(overview: Overview, arguments: Sequence[str]) -> str:
    """Return an estimate as text.

    Args:
        overview: the estimate.
        arguments: of `dpbench run` that would run it.
    """
    width = min(max(WIDTHS[0], shutil.get_terminal_size().columns), WIDTHS[1])
    lines: list[str] = []
    is_run = overview.manifest.purpose == "run"
    for part in overview.parts:
        lines += [*_format_part(part, width, is_run=is_run), ""]
    if overview.items:
        lines += [*_format_items(overview.items, width), ""]
    if is_run:
        lines += [*_format_total(overview, width), ""]
    lines += _format_steps(overview, arguments, width)
    return "\n".join(lines)


def _fill(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _format_part(part: Part, width: int, *, is_run: bool) -> Iterator[str]:
    name = part.manifest.backbone.name
    protocol = describe(part.manifest.resolved_protocol().model_dump())
    yield _fill(f"{name} ({backbones.find(name).summary}): {protocol}", width)
    if not is_run:
        cells = ", ".join(dict.fromkeys(f"{cell.method} @ {cell.budget.label}" for cell in part.loads[0].cells))
        yield _fill(f"No questions are asked. {cells}.", width)
        yield _fill(_format_memory(part.memory), width)
        return
    rows = [
        (load.task, len(load.cells), f"{load.num_questions:,}", _images(load.num_images), f"{load.num_answers:,}")
        for load in part.loads
    ]
    totals = sum(len(load.cells) for load in part.loads), sum(load.num_answers for load in part.loads)
    rows.append(("all", totals[0], "", "", f"{totals[1]:,}"))
    heads = ("task", "cells", "questions", "images", "answers")
    yield tabulate(rows, heads, "simple", disable_numparse=True, colalign=("left", *["right"] * 4))
    for label, reason in part.refused.items():
        yield _fill(f"refused: {label}: {reason}", width)
    yield _fill(_format_memory(part.memory), width)
    yield _fill(
        f"Time: {_format_hours(part.seconds)} on {part.rate.device}; {part.rate.source}, for images of "
        f"{part.shapes.num_visual:,} visual tokens and {part.shapes.text_tokens} text tokens.",
        width,
    )


def _images(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _format_memory(memory: Memory) -> str:
    least, most, weights, prompt, batch, cache = (
        f"{size / GB:.1f} GB" if size >= GB else f"{size / MB:.0f} MB"
        for size in (
            memory.least, memory.most, memory.weights, memory.prompt, memory.batch_size * memory.prompt, memory.cache
        )
    )  # fmt: skip
    return (
        f"Memory: {least} at least, {most} for whole batches: weights {weights}; KV cache and widest activations of an "
        f"unpruned prompt {prompt}, of {memory.batch_size} at once {batch}; encoded images up to {cache}. Batches are "
        "halved where memory runs out."
    )


def _format_hours(seconds: Seconds) -> str:
    """Return a time, or a range from answers of one token to the longest, in the unit that suits the longer."""
    unit, per = ("hours", 3600) if seconds.most >= 5400 else ("minutes", 60) if seconds.most >= 90 else ("seconds", 1)
    least, most = seconds.least / per, seconds.most / per
    digits = 0 if most >= 10 else 1
    ends = f"{least:,.{digits}f}", f"{most:,.{digits}f}"
    return f"about {ends[0]} {unit}" if ends[0] == ends[1] else f"about {ends[0]} to {ends[1]} {unit}"


def _format_items(items: Sequence[Item], width: int) -> Iterator[str]:
    if items and all(item.is_there for item in items):
        yield "Weights and data are here: nothing to fetch."
        return
    rows = [(item.name, "" if item.is_there else _size(item), "here" if item.is_there else "missing") for item in items]
    longest = max(20, width - 28)
    yield tabulate(rows, ("needed", "to fetch", ""), "simple", maxcolwidths=[longest, None, None])
    missing = [item for item in items if not item.is_there]
    known = sum(item.megabytes or 0 for item in missing)
    unknown = [item.name for item in missing if item.megabytes is None]
    if missing:
        rest = f", and of unknown size: {', '.join(unknown)}" if unknown else ""
        yield _fill(f"Missing: about {known / 1000:.1f} GB{rest}", width)


def _size(item: Item) -> str:
    if item.megabytes is None:
        return "unknown"
    if item.megabytes == 0:
        return "made here"
    return f"{item.megabytes / 1000:.1f} GB" if item.megabytes >= 1000 else f"{item.megabytes:.0f} MB"


def _format_total(overview: Overview, width: int) -> Iterator[str]:
    total = sum((part.seconds for part in overview.parts), Seconds(0.0, 0.0))
    if len(overview.parts) > 1:
        answers = sum(load.num_answers for part in overview.parts for load in part.loads)
        where = " and ".join(sorted({part.rate.device for part in overview.parts}))
        yield _fill(f"In all: {answers:,} answers, {_format_hours(total)} on {where}.", width)
    if all(part.rate.is_gpu_profile for part in overview.parts):
        rates = [on_papers_gpu(part.rate) for part in overview.parts]
        times = (
            estimate_seconds(rate, part.shapes, part.loads, part.memory.batch_size)
            for rate, part in zip(rates, overview.parts, strict=True)
        )
        there = _format_hours(sum(times, Seconds(0.0, 0.0)))
        yield _fill(f"On {rates[0].device}: {there}, {rates[0].source}.", width)
        for part in overview.parts:
            if part.memory.least > PAPERS_GPU_BYTES:
                yield _fill(
                    f"{part.manifest.backbone.name} does not fit its {PAPERS_GPU_BYTES / GB:.0f} GB: give --quantize "
                    "4bit, or --device-map auto.",
                    width,
                )
    if any(part.seconds.most > part.seconds.least for part in overview.parts):
        yield _fill(
            "The shorter time is for answers of one token, the longer for answers of their task's limit.", width
        )
    if overview.plan is not None:
        done, pending = len(overview.plan.done), len(overview.plan.pending)
        yield _fill(
            f"{pending} cell{'' if pending == 1 else 's'} to run, {done} done, in {overview.plan.folder}", width
        )


def _format_steps(overview: Overview, arguments: Sequence[str], width: int) -> Iterator[str]:
    yield "Steps:"
    for command in (*missing_commands(overview.items), *_final_commands(overview, arguments)):
        yield wrap_command(command, width)


def _final_commands(overview: Overview, arguments: Sequence[str]) -> list[str]:
    """Return the commands that use what the steps before them have fetched, as the manifest's purpose asks."""
    name, folder = overview.manifest.name, str(overview.out / overview.manifest.name)
    if overview.manifest.purpose == "visualize":
        return [shlex.join(["dpbench", "visualize", "IMAGE.jpg", "--manifest", *arguments, "--out", f"{name}.pdf"])]
    if overview.manifest.purpose == "profile":
        profile = shlex.join(["dpbench", "profile", *arguments, "--weights", backbones.RANDOM])
        return [profile, shlex.join(["dpbench", "report", folder, "--table", "4"])]
    return [shlex.join(["dpbench", "run", *arguments]), shlex.join(["dpbench", "report", folder])]
