"""Validation on held-out images under hard top-k; it decides which scorer is kept and when a training ends."""

from __future__ import annotations

import math
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError

from dpbench import backbones
from dpbench.diffprune import checkpoint
from dpbench.diffprune.checkpoint import Card
from dpbench.diffprune.interruption import Interruption
from dpbench.diffprune.micro_batch import run_within_memory
from dpbench.diffprune.resume import Progress
from dpbench.diffprune.setup import Setup
from dpbench.manifest import fingerprint
from dpbench.storage import files


def is_due(setup: Setup, progress: Progress) -> bool:
    """Return True if the scorer has to be validated after this step."""
    return progress.step % setup.recipe.validate_every == 0 or progress.step == setup.num_steps


def validate(setup: Setup, progress: Progress, out: Path, interruption: Interruption) -> dict[str, float]:
    """Measure the losses, write the scorer to `out` if it is the best so far, and decide whether training ends.

    Returns:
        The row of the log.
    """
    losses = run_within_memory(partial(measure_losses, setup, progress), progress, setup.console)
    with interruption.uninterrupted():
        progress.full, progress.validated = losses["full"], progress.step
        if setup.recipe.keep_scorers:
            _save_scorer(setup, progress, out / checkpoint.STEPS / str(progress.step), losses)
        if _is_better(losses["hard"], progress.best):
            progress.best, progress.waited = losses["hard"], 0
            _save_scorer(setup, progress, out, losses)
        else:
            progress.waited += 1
        progress.finished = progress.waited >= setup.recipe.patience or progress.step == setup.num_steps
    return {"step": progress.step, **losses}


def _is_better(loss: float, best: float | None) -> bool:
    """Return True if a loss is below the best one so far; one that is not finite is never better."""
    return math.isfinite(loss) and (best is None or loss < best)


@torch.no_grad()
def measure_losses(setup: Setup, progress: Progress) -> dict[str, float]:
    """Return mean losses per caption token over all held-out images: the same with any micro-batch and processes.

    Returns:
        "hard@BUDGET" under hard top-k at each budget, "hard" their mean, and "full" of the unpruned backbone, which
        never changes and is measured once.
    """
    budgets, objective = setup.keep_rule.validation_budgets(), setup.objective
    sums = torch.zeros(len(budgets) + 2, dtype=torch.float64)  # one per budget, then unpruned, then caption tokens
    for examples in setup.held_out_batches(progress.micro_batch):
        with setup.autocast():
            batch = objective.encode(examples)
            hard_losses = [objective.hard_losses(batch, budget) for budget in budgets]
            if progress.full is None:
                sums[-2] += float(objective.full_losses(batch).sum())
        sums[: len(budgets)] += torch.tensor([float(losses.sum()) for losses in hard_losses])
        sums[-1] += len(hard_losses[0])
    *totals, full, count = setup.accelerator.reduce(sums.to(setup.accelerator.device), "sum").tolist()
    hard = [total / count for total in totals]
    by_budget = {f"hard@{budget}": loss for budget, loss in zip(budgets, hard, strict=True)}
    return {
        "full": full / count if progress.full is None else progress.full,
        "hard": sum(hard) / len(hard),
        **by_budget,
    }


def _save_scorer(setup: Setup, progress: Progress, out: Path, losses: dict[str, float]) -> None:
    """Write the current scorer, from the main process only."""
    if not setup.accelerator.is_main_process:
        return
    try:
        checkpoint.save(out, setup.objective.scorer, _build_card(setup, progress, losses))
    except SafetensorError as error:  # what safetensors raises when the disk is full
        raise files.write_error(out / checkpoint.WEIGHTS, str(error)) from error


def _build_card(setup: Setup, progress: Progress, losses: dict[str, float]) -> Card:
    recipe, weights = setup.recipe, backbones.RANDOM
    if recipe.weights != backbones.RANDOM:
        weights = fingerprint.weights_hash(recipe.backbone, recipe.weights, recipe.revision)
    return Card(
        backbone=recipe.backbone,
        backbone_weights=weights,
        size=setup.objective.scorer.size,
        variant=recipe.variant,
        fill=recipe.fill,
        keep=recipe.keep,
        tau=(progress.spread * recipe.tau[0], progress.spread * recipe.tau[1]),
        data=recipe.data,
        seed=recipe.seed,
        step=progress.step,
        losses={name: round(loss, 6) for name, loss in losses.items()},
        hours=round(progress.seconds / 3600, 4),
        versions={name: version(name) for name in ("torch", "transformers")},
    )
