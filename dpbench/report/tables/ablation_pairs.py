"""DiffPrune against every other way to train the scorer, seed by seed, and which straight-through one is the control.

The control is the straight-through variant with the lowest validation loss, so that none is chosen by its benchmarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from dpbench.budget import BudgetRequest
from dpbench.diffprune.recipe import STRAIGHT_THROUGH
from dpbench.errors import RecordError
from dpbench.report.runs import Comparison, largest_first
from dpbench.report.tables.ablation import by_scorer, pool, text, variant_of
from dpbench.report.tables.render import frame_of
from dpbench.report.tables.scores import heading
from dpbench.report.tables.table import Cell, Row, Section, number

REFERENCE = "diffprune"
CONTROL = "*"
TRAININGS = "trainings.jsonl"
"""Beside the records: a line per scorer with its folder's name and its card."""


def sections(comparison: Comparison) -> list[Section]:
    """Return the table, or none where fewer than two seeds of DiffPrune have a partner.

    Raises:
        RecordError: `trainings.jsonl` cannot be read.
    """
    differences = _differences(comparison)
    if not any(len(values) > 1 for row in differences.values() for values in row.values()):
        return []
    losses = validation_losses(comparison.folders)
    control = find_control(losses)
    budgets = sorted({budget for row in differences.values() for budget in row}, key=largest_first, reverse=True)
    columns = ("DiffPrune minus", *(budget.label for budget in budgets), *(("Validation loss",) if losses else ()))
    rows, numbers = [], []
    for name, by_budget in differences.items():
        pooled = {budget: pool(values) for budget, values in by_budget.items()}
        shown = [Cell(text(pooled.get(budget))) for budget in budgets]
        loss = [Cell(number(losses.get(name), 3))] if losses else []
        rows.append(Row((Cell(name, "", (CONTROL,) if name == control else ()), *shown, *loss)))
        numbers += [
            {"Variant": name, "Budget": budget.label, "Difference": one.value, "Half width": one.half,
             "Seeds": one.num_seeds, "Validation loss": losses.get(name), "Control": name == control}
            for budget, one in pooled.items()
        ]  # fmt: skip
    title = f"Ablation, seed by seed: {heading(comparison)}"
    return [Section(title, frame_of(numbers), _notes(losses, control), columns, tuple(rows), "ablation-differences")]


def _differences(comparison: Comparison) -> dict[str, dict[BudgetRequest, list[float]]]:
    """Return retention of DiffPrune minus that of every other variant, over the seeds that both have."""
    retentions = by_scorer(comparison)
    reference = retentions.get(REFERENCE, {})
    return {
        name: {
            budget: [by_seed[seed] - value for seed, value in _by_seed(values).items() if seed in by_seed]
            for budget, values in row.items()
            if (by_seed := _by_seed(reference.get(budget, {})))
        }
        for name, row in retentions.items()
        if name != REFERENCE
    }


def _by_seed(values: Mapping[str, float]) -> dict[str, float]:
    return {(found[1] if (found := re.search(r"-(\d+)$", scorer)) else "0"): value for scorer, value in values.items()}


def validation_losses(folders: Sequence[Path]) -> dict[str, float]:
    """Return the mean deployed validation loss of each variant over its trainings, empty without `trainings.jsonl`.

    Raises:
        RecordError: a line cannot be read.
    """
    losses: dict[str, list[float]] = {}
    for path in (folder / TRAININGS for folder in folders):
        for count, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
            try:
                card: dict[str, Any] = json.loads(line)
                losses.setdefault(variant_of(card["scorer"]), []).append(float(card["losses"]["hard"]))
            except (ValueError, TypeError, KeyError):
                raise RecordError(f"{path}:{count}: not the card of a training; make the file again") from None
    return {name: mean(values) for name, values in losses.items()}


def find_control(losses: Mapping[str, float]) -> str | None:
    """Return the straight-through variant, whatever its fill, with the lowest validation loss; None without any."""
    controls = [name for name in losses if name.startswith(STRAIGHT_THROUGH)]
    return min(controls, key=lambda name: losses[name], default=None)


def _notes(losses: Mapping[str, float], control: str | None) -> tuple[str, ...]:
    notes = ["Points of average retention, mean over seeds that both have, and its 95 % interval (Student's t)."]
    if losses:
        notes.append("Validation loss: under hard top-k, per caption token, mean over budgets and seeds.")
    if control:
        notes.append(
            f"{CONTROL} the control: of the straight-through variants the one with the lowest validation loss."
        )
    return tuple(notes)
