"""From images and captions to a loss: through the throttler while training, under hard top-k as deployed.

The backbone is frozen, but gradients flow through it to scorer and denoiser.

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
from dpbench.backbones.caption_loss import caption_losses
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example
from dpbench.diffprune.recipe import Fill
from dpbench.diffprune.scorer import Scorer, Views, lay_out
from dpbench.diffprune.soft_topk import hard_topk_mask, soft_topk
from dpbench.diffprune.throttler import THROTTLERS, Gate, gumbel_noise
from dpbench.errors import ConfigError

Budget = int | float
"""A count of visual tokens per image, or a share of them below 1."""


@dataclass(frozen=True, slots=True)
class KeepRule:
    """The budgets a scorer is trained for: some counts or shares, or a range of shares.

    Attributes:
        choices: one is drawn per step; empty if `span` is given.
        span: lowest and highest share; one between them is drawn per step.
    """

    choices: tuple[Budget, ...]
    span: tuple[float, float] | None = None

    @classmethod
    def parse(cls, text: str) -> KeepRule:
        """Parse "64", "64,128,192", "0.1,0.2" or "0.05-0.4".

        Raises:
            ConfigError: it is none of these.
        """
        try:
            if "-" in text:
                low, high = (float(part) for part in text.split("-"))
                rule = cls((), (low, high))
            else:
                rule = cls(tuple(float(part) if "." in part else int(part) for part in text.split(",")))
            if all(map(_is_valid, rule.validation_budgets())) and (
                rule.span is None or 0 < rule.span[0] < rule.span[1] < 1
            ):
                return rule
        except ValueError:
            pass
        raise ConfigError(
            f"--keep: {text!r} is not a budget; give counts (64 or 64,128), shares (0.1,0.2) or a range (0.05-0.4)"
        )

    def check(self, num_visual: int | None, backbone: str) -> None:
        """Refuse counts above the backbone's number of visual tokens, which is None if it depends on the image.

        Raises:
            ConfigError: a count is above it.
        """
        largest = max((budget for budget in self.choices if isinstance(budget, int)), default=0)
        if num_visual is not None and largest > num_visual:
            raise ConfigError(f"--keep: {largest} is more than the {num_visual} visual tokens of {backbone}")

    def draw(self, rng: np.random.Generator) -> Budget:
        """Draw the budget of one step."""
        if self.span is not None:
            return float(rng.uniform(*self.span))
        return self.choices[int(rng.integers(len(self.choices)))]

    def validation_budgets(self) -> tuple[Budget, ...]:
        """Return the budgets that validation averages over: the choices, or both ends of the range and its middle."""
        return self.choices if self.span is None else (self.span[0], sum(self.span) / 2, self.span[1])


def _is_valid(budget: Budget) -> bool:
    return budget >= 1 if isinstance(budget, int) else 0 < budget < 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded images with their prompts and captions.

    Attributes:
        features: from the frozen tower; they need no gradient.
        embeds: per image (N, D), in float32 or better, the type training runs in.
        views: layout of the images' views in rows.
    """

    prompts: tuple[Prompt, ...]
    features: tuple[Features, ...]
    captions: tuple[str, ...]
    embeds: tuple[Tensor, ...]
    views: Views

    def rows(self, name: str) -> Tensor:
        """Lay out a per-token field of the features in rows."""
        return self.views.rows([getattr(image, name) for image in self.features])


class Objective:
    """The losses of scorer and denoiser in front of a frozen backbone."""

    def __init__(
        self,
        backbone: Backbone,
        scorer: Scorer,
        denoiser: Denoiser,
        variant: str,
        instruction: str,
        fill: Fill = "zero",
    ) -> None:
        self.backbone, self.scorer, self.denoiser = backbone, scorer, denoiser
        self.throttler = THROTTLERS[variant]
        self.instruction, self.fill = instruction, fill

    @torch.no_grad()
    def encode(self, examples: Sequence[Example]) -> Batch:
        """Run tower and projector over the images."""
        prompts = tuple(self.backbone.prompt([example.image], self.instruction) for example in examples)
        features = tuple(self.backbone.encode([prompt.pixels[0] for prompt in prompts]))
        embeds = tuple(_at_least_float32(image.embeds_ND) for image in features)
        num_views = [int(image.view_N[-1]) + 1 for image in features]
        views = lay_out([len(embeds_ND) for embeds_ND in embeds], num_views, self.backbone.device)
        return Batch(prompts, features, tuple(example.caption for example in examples), embeds, views)

    def logits(self, batch: Batch) -> Tensor:
        """Score every token, (R, N)."""
        rows = batch.views.rows(batch.embeds), batch.rows("row_N"), batch.rows("col_N")
        return self.scorer(*rows, batch.views.padding_mask)  # type: ignore[no-any-return]

    def budgets(self, batch: Batch, budget: Budget) -> Tensor:
        """Return the budget of each row, (R,) float64: a count is divided by the most views an image can have."""
        sizes = torch.tensor([size for image in batch.views.sizes for size in image], dtype=torch.float64)
        if isinstance(budget, int):
            sizes = torch.full_like(sizes, max(1, budget // self.backbone.max_views))
        else:
            sizes = (sizes * budget).clamp(min=1)
        return sizes.to(self.backbone.device)

    def gate(self, batch: Batch, budget: Budget, tau: float, generators: Sequence[torch.Generator]) -> Gate:
        """Draw the noise of each image from its own generator, so that it does not depend on the rest of the batch."""
        pairs = list(zip(batch.embeds, generators, strict=True))
        normal = [_normal_noise(embeds_ND, generator) for embeds_ND, generator in pairs]
        gumbel = [gumbel_noise((len(embeds_ND),), generator) for embeds_ND, generator in pairs]
        rows = batch.views.rows
        return Gate(
            k_R=self.budgets(batch, budget),
            tau=tau,
            valid_RN=batch.rows("read_N"),
            noise_RND=rows(normal),
            gumbel_RN=rows(gumbel).to(batch.embeds[0].dtype),
            fill=self.fill,
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
        indices = [kept_N.nonzero()[:, 0].cpu() for kept_N in batch.views.images(kept)]
        return self._losses(batch, batch.embeds, indices)

    @torch.no_grad()
    def full_losses(self, batch: Batch) -> Tensor:
        """Return the loss of every caption token (T,) of the unpruned backbone."""
        return self._losses(batch, batch.embeds)

    def _losses(self, batch: Batch, visual: Sequence[Tensor], kept: Sequence[Tensor] | None = None) -> Tensor:
        return caption_losses(self.backbone, batch.prompts, batch.features, visual, batch.captions, kept)


@torch.no_grad()
def hardness(logits_RN: Tensor, gate: Gate) -> float:
    """Return the share of the budget's mass on the hard top-k; at 1, training is as hard as deployment."""
    weights = soft_topk(logits_RN, gate.k_R, gate.tau, mask=gate.valid_RN)
    kept = hard_topk_mask(logits_RN, gate.k_R.round(), gate.valid_RN)
    return float((weights * kept).sum() / weights.sum())


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator whose stream is a function of the key: the same after any resume, in any micro-batch."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _normal_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
