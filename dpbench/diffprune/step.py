"""One optimiser step: the gradient of its examples, added up in micro-batches, clipped and applied."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dpbench.diffprune.example import Example
from dpbench.diffprune.interruption import Interruption
from dpbench.diffprune.micro_batch import run_within_memory
from dpbench.diffprune.objective import generator_of, hardness
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.resume import Progress
from dpbench.diffprune.setup import Setup
from dpbench.errors import DpbenchError


def cosine(start: float, end: float, done: float) -> float:
    """Return the value a share `done` of the way along half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up times a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1.0, recipe.warmup * num_steps))
    return recipe.lr * warm * cosine(1, 0, step / num_steps)


def optimizer_step(
    setup: Setup, progress: Progress, examples: list[Example], interruption: Interruption
) -> dict[str, float]:
    """Make one optimiser step and return its row of the log.

    Args:
        setup: of the training.
        progress: counts the step.
        examples: this process's part of the step.
        interruption: waits until weights and step number are both updated.

    Raises:
        DpbenchError: the loss is not finite, or memory does not hold one image.
    """
    lr = learning_rate(setup.recipe, progress.step, setup.num_steps)
    tau = progress.spread * cosine(*setup.recipe.tau, progress.step / setup.num_steps)
    setup.optimizer.param_groups[0]["lr"] = lr
    loss, mass = reduce_and_clip_gradient(setup, progress, examples, tau)
    if not math.isfinite(loss):
        raise DpbenchError(f"the loss is {loss} at step {progress.step + 1}; lower --param lr, or --dtype float32")
    with interruption.uninterrupted():
        setup.optimizer.step()
        progress.step += 1
    return {"step": progress.step, "loss": loss, "tau": tau, "lr": lr, "mass_on_top_k": mass}


def reduce_and_clip_gradient(
    setup: Setup, progress: Progress, examples: list[Example], tau: float
) -> tuple[float, float]:
    """Set and clip the gradient of the mean loss per caption token, over all processes.

    Returns:
        That loss, and the share of the budget's mass on the hard top k.
    """
    accelerator = setup.accelerator
    sums = run_within_memory(partial(accumulate_gradient, setup, progress, examples, tau), progress, setup.console)
    total, count, mass = accelerator.reduce(sums, "sum").tolist()
    for parameter in setup.parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator.reduce(gradient, "sum") / max(count, 1)
    torch.nn.utils.clip_grad_norm_(setup.parameters, setup.recipe.clip)
    return total / max(count, 1), mass / accelerator.num_processes


def accumulate_gradient(setup: Setup, progress: Progress, examples: list[Example], tau: float) -> Tensor:
    """Add up the gradients of this process's examples, from zero.

    Returns:
        Their loss, their number of caption tokens and the mean share of mass on the hard top k, (3,) float64.
    """
    setup.optimizer.zero_grad(set_to_none=True)
    device, objective = setup.accelerator.device, setup.objective
    key = (setup.recipe.seed, progress.step)
    budget = setup.keep_rule.draw(np.random.default_rng(key))
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(examples), progress.micro_batch):
        part = examples[start : start + progress.micro_batch]
        # the noise of an image depends on its place in the step only, not on the size of the micro-batch
        places = range(start, start + len(part))
        noise = [generator_of(device, *key, setup.accelerator.process_index, place) for place in places]
        with setup.autocast():
            batch = objective.encode(part)
            logits = objective.logits(batch)
            gate = objective.gate(batch, budget, tau, noise)
            losses = objective.soft_losses(logits, batch, gate)
        losses.sum().backward()
        mass = hardness(logits, gate) * len(part) / len(examples)
        sums += torch.tensor([float(losses.detach().sum()), len(losses), mass], dtype=torch.float64)
    return sums.to(device)
