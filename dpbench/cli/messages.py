"""Format what commands print: the plan and outcome of a run, the lists, the conformance report. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from tabulate import tabulate

from dpbench import backbones, tasks
from dpbench.evaluation.sharding import WHOLE, Shard
from dpbench.manifest.cell import label_of
from dpbench.storage.too_long import explain_too_long
from dpbench.tasks.data.root import is_present

if TYPE_CHECKING:
    from dpbench.cli.arguments import CellFlags
    from dpbench.conformance.report import Report
    from dpbench.diffprune.recipe import Recipe
    from dpbench.diffprune.train import Ended
    from dpbench.evaluation.outcome import Outcome
    from dpbench.evaluation.plan import Plan
    from dpbench.manifest.schema import Manifest
    from dpbench.tasks.data.pull import Pulled


def format_stop(arguments: Sequence[str], flags: Sequence[str] = ()) -> str:
    """Return what a stopped command prints: the command that continues it.

    Args:
        arguments: of the stopped command.
        flags: that it needs in addition to continue.
    """
    command = shlex.join(["dpbench", *arguments, *(flag for flag in flags if flag not in arguments)])
    return f"stopped; what was finished is kept, go on with: {command}"


def format_cells(planned: Plan) -> str:
    """List a plan's cells: those to run, and those that are done."""
    lines = [f"run    {cell.id}  {cell.label}" for cell in planned.pending]
    lines += [f"done   {record.cell_id}  {label_of(record.cell)}" for record in planned.done]
    return "\n".join(lines)


def format_finished(planned: Plan) -> str:
    """Return that a run has nothing left to do, and the command that shows it."""
    num = len(planned.done)
    done = "the one cell is" if num == 1 else f"all {num} cells are"
    return f"nothing to run: {done} done; see: dpbench report {planned.folder}"


def format_outcome(ended: Outcome, folder: Path, shard: Shard = WHOLE) -> str:
    """Return which samples failed or were left out, what the cache saved, what was added, and what to do next."""
    lines = [
        f"{record.num_failed} of {record.num_samples} samples failed: {record.cell['method']} on {record.cell['task']} "
        f"(reasons in {folder}/samples/{record.cell_id}.jsonl)"
        for record in (*ended.added, *ended.existing)
        if record.num_failed
    ]
    lines += explain_too_long((*ended.added, *ended.existing))
    lines += [f"not finished: {label}, {done} of {total} answered" for label, done, total in ended.unfinished]
    counts = ended.feature_cache
    if any(counts.values()):
        lines.append(f"feature cache: {counts['encoded']} images encoded, {counts['hits']} reused")
    if ended.failed:
        rows = [(failed.cell.label, failed.reason) for failed in ended.failed]
        lines.append(tabulate(rows, ("cell that failed", "reason"), "github", maxcolwidths=[None, 80]))
        lines.append("run the same command to try them again")
    if shard != WHOLE and not ended.added:
        return "\n".join([*lines, f"shard {shard.label} is done; after the last one: dpbench merge {folder}"])
    lines += [
        f"answers for the task's server, not scored here: {path}" for path in sorted(folder.glob("submissions/*.json"))
    ]
    if num := len(ended.added):
        lines.append(f"{num} record{'' if num == 1 else 's'} added to {folder / 'records.jsonl'}")
    return "\n".join(lines)


def format_overrides(manifest: Manifest, flags: CellFlags) -> str:
    """Return what flags changed of a manifest, as it is run: one line, empty if nothing was."""
    budgets = manifest.budgets
    values = [] if budgets is None else [("keep", budgets.keep), ("prune-rate", budgets.prune_rate)]
    shown = {
        "backbone": manifest.backbone.name if flags.backbone else "",
        "methods": ", ".join(dict.fromkeys(entry.name for entry in manifest.methods)) if flags.methods else "",
        **{name: ", ".join(map(str, sizes)) for name, sizes in values if sizes and flags.budgets()},
        "budget-kind": budgets.kind if budgets and flags.budget_kind else "",
        "tasks": ", ".join(manifest.tasks) if flags.tasks else "",
        **{name: str(getattr(manifest.protocol, name)) for name in flags.protocol},
        **{name: str(value) for name, value in flags.backbone_fields.items()},
    }
    changed = "; ".join(f"{name.replace('_', '-')}: {text}" for name, text in shown.items() if text)
    return f"{manifest.name} with {changed}" if changed else ""


def format_columns(rows: Iterable[tuple[str, str]], width: int) -> str:
    """Align names and descriptions; a description that is too long for the terminal goes on below itself."""
    rows = list(rows)
    column = max((len(name) for name, _ in rows), default=0) + 2
    return "\n".join(hanging(name.ljust(column), text, column, width) for name, text in rows)


def hanging(head: str, text: str, indent: int, width: int) -> str:
    """Return a heading and a text that goes on below itself; names with hyphens and paths stay whole.

    Args:
        head: stands before the text on the first line.
        text: one paragraph.
        indent: blanks before the other lines.
        width: of the terminal, in characters.
    """
    return fill(
        text, width, initial_indent=head, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def format_backbone_table() -> str:
    """Return the backbones as a table of at most 80 columns."""
    rows = [(name, family.summary, family.parameters, family.visual) for name, family in backbones.FAMILIES.items()]
    heads, widths = ("name", "what", "size", "visual tokens"), [None, 24, None, None]
    return tabulate(rows, heads, "plain", disable_numparse=True, maxcolwidths=widths)


def format_task_table(data_root: Path | None) -> str:
    """Return the benchmarks and their variants, and whether their data is present, in at most 80 columns.

    Args:
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
    """
    heads = ("task", "data", "split", "asked", "images", "scale", "metric")
    rows = [
        (
            name,
            "yes" if is_present(name, data_root) else "no",
            task.split,
            task.num_asked,
            task.num_images,
            task.scale,
            task.measure,
        )
        for name, task in tasks.ALL.items()
    ]
    sides = ("left", "left", "left", "right", "right", "left", "left")
    table = tabulate([heads, *rows], (), "plain", missingval="", colalign=sides)
    place = f"{data_root}/DATA" if data_root else f"the hub's cache, as {tasks.ORGANISATIONS[0]}/DATA"
    return (
        f"{table}\n\nWhat a score may be compared to: dpbench list tasks NAME\nData is looked for in {place};\n"
        "fetch what is missing with: dpbench data pull TASK"
    )


def format_conformance(report: Report) -> str:
    """Return what `dpbench check` prints: the suite's table, then the golden vectors."""
    from dpbench.conformance import suite

    lines = [suite.table(report.findings)]
    if report.vectors:
        rows = [
            (vector.path.name, vector.kind, "ok" if vector.passed else f"FAILED: {vector.detail}")
            for vector in report.vectors
        ]
        num_passed = sum(vector.passed for vector in report.vectors)
        lines += ["", tabulate(rows, ["vector", "kind", "outcome"], "github"), f"{num_passed} of {len(rows)} vectors"]
    return "\n".join(lines)


def read_first_comment(path: Path) -> str:
    """Return the comment on the first line of a manifest."""
    return path.read_text(encoding="utf-8").split("\n")[0].removeprefix("#").strip()


def format_download(fetched: Pulled) -> str:
    """Return one line about a benchmark's fetched data."""
    return f"{fetched.origin.label}: {len(fetched.origin.files)} files, {fetched.size}, in {fetched.folder}"


def format_training(recipe: Recipe, ended: Ended) -> str:
    """Return what a finished training prints, with the command that uses its scorer."""
    keep = recipe.keep.split(",")[0]
    budget = f"--keep {keep}" if keep.isdigit() else f"--prune-rate {1 - float(keep.split('-')[0]):g}"
    skipped = f"{ended.num_broken} broken examples were skipped, see broken.jsonl\n" if ended.num_broken else ""
    return (
        f"{skipped}{ended.folder}: {ended.step} steps, loss per caption token {ended.best:.3f} under hard top-k, "
        f"{ended.full:.3f} unpruned; try it with:\n"
        f"dpbench run --method diffprune --backbone {recipe.backbone} {budget} --param checkpoint={ended.folder}"
    )
