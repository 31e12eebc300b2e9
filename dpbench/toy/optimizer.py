"""The optimiser of the toy recipe: Muon for the matrices of the blocks, AdamW for everything else, one cosine."""

import math
from collections.abc import Iterable

import torch
from torch import nn

WARMUP_STEPS = 50
FLOOR = 0.1


class MuonAdamW:
    """Two optimisers on one schedule: linear warm-up, then cosine to a tenth.

    `start` is the step to resume from: a resumed stage warms up again and continues the same cosine.
    Muon (Jordan et al. 2024) takes the 2-D weights inside transformer layers, AdamW all other parameters.
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, steps: int, muon_lr: float, adam_lr: float, start: int = 0
    ) -> None:
        named = [item for module in modules for item in module.named_parameters() if item[1].requires_grad]
        inner = [p for name, p in named if p.ndim == 2 and ".layers." in f".{name}"]
        outer = [p for name, p in named if not (p.ndim == 2 and ".layers." in f".{name}")]
        self.optimizers: list[torch.optim.Optimizer] = []
        if inner:
            self.optimizers.append(torch.optim.Muon(inner, lr=muon_lr, weight_decay=0.01, momentum=0.95))
        self.optimizers.append(torch.optim.AdamW(outer, lr=adam_lr, weight_decay=0.01, betas=(0.9, 0.98)))
        self.parameters = inner + outer

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / WARMUP_STEPS)
            done = min(1.0, (start + step) / steps)
            return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in self.optimizers]

    def step(self, loss: torch.Tensor) -> None:
        """Back-propagate, clip to norm 1, update, advance the schedule."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
