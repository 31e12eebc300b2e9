"""The scorer where DiffPrune trains it: between a backbone's projector and its LLM, with the loss on captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from dpbench import backbones
from dpbench.backbones.caption_loss import caption_logits
from dpbench.diffprune import checkpoint as checkpoints
from dpbench.diffprune.objective import Batch, Budget
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.setup import Setup, build_setup
from dpbench.errors import ConfigError


class ProjectorSite:
    """A backbone of dpbench with a fresh or a trained scorer, without a denoiser, which begins as the identity."""

    name = "projector"

    def __init__(self, setup: Setup) -> None:
        self.setup, self.objective = setup, setup.objective
        self.model, self.data, self.seed = setup.recipe.backbone, setup.recipe.data, setup.recipe.seed
        self.scorer = setup.objective.scorer
        self._encoded: dict[tuple[int, int, bool], Batch] = {}

    def load_scorer(self, folder: Path) -> int:
        """Load a trained scorer in place of the one that is there and return the step it was trained to.

        Raises:
            ConfigError: it cannot be read, or is of another backbone or shape.
            MissingError: there is none.
        """
        checkpoints.find(str(folder), self.model)
        trained = checkpoints.load(folder, self.model, self.scorer.size.width)
        if trained.size != self.scorer.size:
            raise ConfigError(
                f"--checkpoints: the scorer in {folder} has the shape {trained.size}, this recipe {self.scorer.size}; "
                "give its sizes as --param"
            )
        self.scorer.load_state_dict(trained.state_dict())
        return checkpoints.read_card(folder, self.model).step

    @property
    def num_tokens(self) -> int | None:
        """Return N, or None if it depends on the image."""
        return backbones.find(self.model).num_visual

    def load_batch(self, number: int, size: int, *, held_out: bool = False) -> Batch:
        """Read and encode images, each batch once.

        Raises:
            ConfigError: there are not so many images.
        """
        key = number, size, held_out
        if key not in self._encoded:
            self._encoded[key] = self._read_batch(number, size, held_out)
        return self._encoded[key]

    def _read_batch(self, number: int, size: int, held_out: bool) -> Batch:
        indices = self.setup.split.validation if held_out else self.setup.split.training
        chosen = indices[number * size : (number + 1) * size]
        if len(chosen) < size:
            kind = "held-out" if held_out else "training"
            raise ConfigError(
                f"--data: {len(indices)} {kind} images are fewer than {number + 1} batches of {size}; give more data "
                "or fewer --batches"
            )
        return self.objective.encode([self.setup.source[int(index)] for index in chosen])

    def logits(self, batch: Batch) -> Tensor:
        """Score every token, (R, N)."""
        return self.objective.logits(batch)

    def valid(self, batch: Batch) -> Tensor:
        """Return which tokens are read, (R, N) bool."""
        return batch.rows("read_N")

    def tokens(self, batch: Batch) -> Tensor:
        """Return the visual tokens, (R, N, D), zeros as padding."""
        return batch.views.rows(batch.embeds)

    def budgets(self, batch: Batch, keep: Budget) -> Tensor:
        """Return the budget of each row, (R,) float64."""
        return self.objective.budgets(batch, keep)

    def predict(self, batch: Batch, tokens_RND: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is predicted for every caption token, (T, V), and the token, (T,) int64."""
        return self._caption_logits(batch, batch.views.images(tokens_RND))

    def predict_kept(self, batch: Batch, kept_RN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same with the other tokens removed, those that stay at their original positions."""
        indices = [kept_N.nonzero()[:, 0].cpu() for kept_N in batch.views.images(kept_RN)]
        return self._caption_logits(batch, batch.embeds, indices)

    def _caption_logits(
        self, batch: Batch, visual: Sequence[Tensor], kept: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return caption_logits(self.objective.backbone, batch.prompts, batch.features, visual, batch.captions, kept)


def open_projector_site(recipe: Recipe, *, device: str, console: Console) -> ProjectorSite:
    """Load backbone and data, with a fresh scorer.

    Args:
        recipe: backbone, data, seed and sizes of a training.
        device: "auto", "cpu" or "cuda".
        console: gets the messages.

    Raises:
        ConfigError: the data cannot be used.
        MissingError: weights or data are missing.
    """
    return ProjectorSite(build_setup(recipe, Accelerator(cpu=device == "cpu"), console))
