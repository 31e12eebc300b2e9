"""The parts of a training, built once from its recipe: data, frozen backbone, scorer, denoiser and optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from rich.console import Console

from dpbench import backbones
from dpbench.backbones.base import Backbone
from dpbench.diffprune import held_out
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import Split, split
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example, Source
from dpbench.diffprune.objective import KeepRule, Objective
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.diffprune.sources import open_source


@dataclass(frozen=True, slots=True)
class Setup:
    """The parts of a training; the fields never change, but weights and optimiser state inside them do.

    Attributes:
        recipe: every constant.
        accelerator: the device of this process, and the other processes of the training.
        console: gets the messages.
        source: image-caption pairs.
        split: indices of the training examples, and of those validation examples that can be read.
        broken: the validation examples that cannot.
        keep_rule: the budgets to train for.
        num_steps: optimiser steps of the full training.
        objective: holds backbone, scorer and denoiser.
        optimizer: of scorer and denoiser.
    """

    recipe: Recipe
    accelerator: Accelerator
    console: Console
    source: Source
    split: Split
    broken: Broken
    keep_rule: KeepRule
    num_steps: int
    objective: Objective
    optimizer: torch.optim.AdamW

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the trained modules by their name in a checkpoint."""
        return {"scorer": self.objective.scorer, "denoiser": self.objective.denoiser}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return all trained parameters."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    @property
    def micro_batch(self) -> int:
        """Return the number of images to run at once at the start: by default this process's share of a step."""
        return self.recipe.micro_batch or -(-self.recipe.batch_size // self.accelerator.num_processes)

    def held_out_batches(self, size: int) -> Iterator[list[Example]]:
        """Yield this process's share of the held-out images, `size` at once; see `held_out.read_share`."""
        return held_out.read_share(
            self.source,
            self.split.validation,
            self.accelerator,
            seed=self.recipe.seed,
            batch_size=size,
            num_workers=self.recipe.num_workers,
        )

    def autocast(self) -> torch.autocast:
        """Run scorer and denoiser, whose weights are float32, in the backbone's type."""
        enabled = self.recipe.dtype == "bfloat16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)


def build_setup(recipe: Recipe, accelerator: Accelerator, console: Console) -> Setup:
    """Open the data, load the backbone and build scorer and denoiser; bad data is refused before the backbone loads.

    Raises:
        ConfigError: the data cannot be used, no held-out image can be read, or a budget is above the backbone's
            number of visual tokens.
        MissingError: weights or data are missing.
    """
    source = open_source(recipe.data, seed=recipe.seed, mention=console.print)
    parts = split(len(source), fraction=recipe.fraction, num_validation=recipe.num_validation, seed=recipe.seed)
    keep_rule = KeepRule.parse(recipe.keep)
    keep_rule.check(backbones.find(recipe.backbone).num_visual, recipe.backbone)
    workers = recipe.num_workers
    readable, broken = held_out.find_readable(source, parts.validation, accelerator, num_workers=workers)
    objective = _build_objective(recipe, _load_frozen_backbone(recipe, accelerator.device))
    # again, because the backbone may refuse the shape of an image
    check = objective.backbone.check_image
    validation, refused = held_out.find_readable(source, readable, accelerator, num_workers=workers, check=check)
    broken.add(0, refused.texts)
    parameters = [*objective.scorer.parameters(), *objective.denoiser.parameters()]
    return Setup(
        recipe=recipe,
        accelerator=accelerator,
        console=console,
        source=source,
        split=parts._replace(validation=validation),
        broken=broken,
        keep_rule=keep_rule,
        num_steps=recipe.steps or max(1, len(parts.training) // recipe.batch_size),
        objective=objective,
        optimizer=torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay),
    )


def _load_frozen_backbone(recipe: Recipe, device: torch.device) -> Backbone:
    backbone = backbones.load(
        recipe.backbone,
        weights=recipe.weights,
        revision=recipe.revision,
        device=str(device),
        dtype=recipe.dtype,
        image_aspect=recipe.image_aspect,
    )
    backbone.model.requires_grad_(False)
    if recipe.gradient_checkpointing:
        enable = getattr(backbone.decoder, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
        (enable or backbone.decoder.gradient_checkpointing_enable)({"use_reentrant": False})
        backbone.decoder.train()  # layers are checkpointed in training mode only; they have no dropout
    return backbone


def _build_objective(recipe: Recipe, backbone: Backbone) -> Objective:
    width = backbone.decoder.config.hidden_size
    size = ScorerSize(width=width, hidden=recipe.hidden, heads=recipe.heads, layers=recipe.layers, ffn=recipe.ffn)
    torch.manual_seed(recipe.seed)
    scorer = Scorer(size).to(backbone.device)
    denoiser = Denoiser(size, "global" if recipe.variant == "global-denoiser" else "identity").to(backbone.device)
    return Objective(backbone, scorer, denoiser, recipe.variant, recipe.instruction, recipe.fill)
