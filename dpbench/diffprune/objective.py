"""From images and captions to a loss: through the throttler while training, under hard top-k as deployed.

The backbone is frozen; gradients reach scorer and denoiser through it.

Shape letters: N visual tokens of an image (all its views), D the LLM's width, R rows (one view each), T caption tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example
from dpbench.diffprune.scorer import Scorer, Views, lay_out
from dpbench.diffprune.soft_topk import hard_topk_mask, soft_topk
from dpbench.diffprune.throttler import THROTTLERS, Gate, gumbel_noise
from dpbench.errors import ConfigError

Budget = int | float
"""A count of visual tokens per image, or a share of them below 1."""


@dataclass(frozen=True, slots=True)
class KeepRule:
    """What budgets a scorer is trained for: some counts or shares, or a range of shares.

    Attributes:
        choices: one is drawn per step; empty where there is a range.
        span: lowest and highest share, between which one is drawn per step.
    """

    choices: tuple[Budget, ...]
    span: tuple[float, float] | None = None

    @classmethod
    def parse(cls, text: str) -> KeepRule:
        """Read "64", "64,128,192", "0.1,0.2" or "0.05-0.4".

        Raises:
            ConfigError: it is none of these.
        """
        try:
            if "-" in text:
                low, high = (float(part) for part in text.split("-"))
                rule = cls((), (low, high))
            else:
                rule = cls(tuple(float(part) if "." in part else int(part) for part in text.split(",")))
            if all(map(_sound, rule.validated())) and (rule.span is None or 0 < rule.span[0] < rule.span[1] < 1):
                return rule
        except ValueError:
            pass
        raise ConfigError(
            f"--keep: {text!r} is no budget; give counts (64 or 64,128), shares (0.1,0.2) or a range (0.05-0.4)"
        )

    def within(self, num_visual: int | None, backbone: str) -> KeepRule:
        """Return this rule where the backbone has that many visual tokens; None is a number that follows the image.

        Raises:
            ConfigError: a count is above it.
        """
        most = max((each for each in self.choices if isinstance(each, int)), default=0)
        if num_visual is not None and most > num_visual:
            raise ConfigError(f"--keep: {most} is more than the {num_visual} visual tokens of {backbone}")
        return self

    def drawn(self, rng: np.random.Generator) -> Budget:
        """Return one step's budget."""
        if self.span is not None:
            return float(rng.uniform(*self.span))
        return self.choices[int(rng.integers(len(self.choices)))]

    def validated(self) -> tuple[Budget, ...]:
        """Return the budgets that validation averages over: the choices, or both ends of the range and their mean."""
        return self.choices if self.span is None else (self.span[0], sum(self.span) / 2, self.span[1])


def _sound(budget: Budget) -> bool:
    return budget >= 1 if isinstance(budget, int) else 0 < budget < 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded images with their prompts and captions.

    Attributes:
        features: no gradient reaches them.
        embeds: per image (N, D) in float32 or better: where training happens.
        views: their layout in rows.
    """

    prompts: tuple[Prompt, ...]
    features: tuple[Features, ...]
    captions: tuple[str, ...]
    embeds: tuple[Tensor, ...]
    views: Views

    def rows(self, name: str) -> Tensor:
        """Lay out a per-token field of the features in rows."""
        return self.views.rows([getattr(each, name) for each in self.features])


class Objective:
    """What scorer and denoiser are trained on, and what tells how good they are."""

    def __init__(self, backbone: Backbone, scorer: Scorer, denoiser: Denoiser, variant: str, instruction: str) -> None:
        self.backbone, self.scorer, self.denoiser = backbone, scorer, denoiser
        self.throttler = THROTTLERS[variant]
        self.instruction = instruction

    @torch.no_grad()
    def read(self, examples: Sequence[Example]) -> Batch:
        """Run tower and projector over the images."""
        prompts = tuple(self.backbone.prompt([each.image], self.instruction) for each in examples)
        features = tuple(self.backbone.encode([prompt.pixels[0] for prompt in prompts]))
        embeds = tuple(each.embeds_ND.to(torch.promote_types(each.embeds_ND.dtype, torch.float32)) for each in features)
        num_views = [int(each.view_N[-1]) + 1 for each in features]
        views = lay_out([len(each) for each in embeds], num_views, self.backbone.device)
        return Batch(prompts, features, tuple(each.caption for each in examples), embeds, views)

    def logits(self, batch: Batch) -> Tensor:
        """Score every token, (R, N)."""
        rows = batch.views.rows(batch.embeds), batch.rows("row_N"), batch.rows("col_N")
        return self.scorer(*rows, batch.views.padding_mask)  # type: ignore[no-any-return]

    def budgets(self, batch: Batch, budget: Budget) -> Tensor:
        """Return the budget of each row, float64: a count is shared over the most views an image can have."""
        sizes = torch.tensor([size for image in batch.views.sizes for size in image], dtype=torch.float64)
        if isinstance(budget, int):
            sizes = torch.full_like(sizes, max(1, budget // self.backbone.max_views))
        else:
            sizes = (sizes * budget).clamp(min=1)
        return sizes.to(self.backbone.device)

    def gate(self, batch: Batch, budget: Budget, tau: float, generators: Sequence[torch.Generator]) -> Gate:
        """Draw the noise, each image's from its own generator, so that it does not depend on the batch around it."""
        normal = [_normal(each, generator) for each, generator in zip(batch.embeds, generators, strict=True)]
        gumbel = [gumbel_noise((len(each),), g) for each, g in zip(batch.embeds, generators, strict=True)]
        rows = batch.views.rows
        return Gate(
            k_R=self.budgets(batch, budget),
            tau=tau,
            valid_RN=batch.rows("read_N"),
            noise_RND=rows(normal),
            gumbel_RN=rows(gumbel).to(batch.embeds[0].dtype),
        )

    def soft_losses(self, logits_RN: Tensor, batch: Batch, gate: Gate) -> Tensor:
        """Return the loss of every caption token (T,) with the tokens throttled by their logits (equation 2)."""
        tokens = self.throttler(logits_RN, batch.views.rows(batch.embeds), gate)
        tokens = self.denoiser(tokens, batch.views.padding_mask)
        return self._losses(batch, batch.views.images(tokens))

    @torch.no_grad()
    def hard_losses(self, batch: Batch, budget: Budget) -> Tensor:
        """Return the loss of every caption token (T,) as deployed: hard top-k, no throttler, no denoiser."""
        kept = hard_topk_mask(self.logits(batch), self.budgets(batch, budget).round(), batch.rows("read_N"))
        indices = [each.nonzero()[:, 0].cpu() for each in batch.views.images(kept)]
        return self._losses(batch, batch.embeds, indices)

    @torch.no_grad()
    def full_losses(self, batch: Batch) -> Tensor:
        """Return the loss of every caption token (T,) of the unpruned backbone."""
        return self._losses(batch, batch.embeds)

    def _losses(self, batch: Batch, visual: Sequence[Tensor], kept: Sequence[Tensor] | None = None) -> Tensor:
        return self.backbone.caption_losses(batch.prompts, batch.features, visual, batch.captions, kept)


@torch.no_grad()
def hardness(logits_RN: Tensor, gate: Gate) -> float:
    """Return which share of the budget's mass lies on the hard top-k: 1 where training is as hard as deployment."""
    weights = soft_topk(logits_RN, gate.k_R, gate.tau, mask=gate.valid_RN)
    kept = hard_topk_mask(logits_RN, gate.k_R.round(), gate.valid_RN)
    return float((weights * kept).sum() / weights.sum())


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator whose stream is a function of the key: the same after any resume, in any micro-batch."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
