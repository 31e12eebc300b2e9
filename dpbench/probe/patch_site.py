"""The scorer where the paper probes it: between patch embedding and encoder of an image classifier (section 3.2).

A two-layer perceptron scores every patch on its own. Class and distillation tokens are never scored or removed.

Shape letters: B images, N patches, P tokens in front of them, D the encoder's width, V classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from dpbench.diffprune.data import split
from dpbench.diffprune.objective import Budget
from dpbench.errors import ConfigError, MissingError
from dpbench.probe.labelled_images import LabelledImages, open_labelled_images

HELD_OUT = 512
"""Images at most that are held out; half of a smaller folder."""


class PatchScorer(nn.Module):
    """A linear layer as wide as the token, GELU, and one to a logit: 0.59 million parameters at D = 768."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return one logit a token, (B, N)."""
        return self.layers(tokens_BND)[..., 0]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Patches:
    """Images behind the patch embedding.

    Attributes:
        pixels: (B, 3, height, width), what the classifier reads.
        embeds_BLD: all P + N tokens, with their positions added.
        num_front: P.
        labels_B: int64 classes.
    """

    pixels: Tensor
    embeds_BLD: Tensor
    num_front: int
    labels_B: Tensor


class PatchSite:
    """A frozen image classifier of transformers (ViT, DeiT) with a fresh scorer behind its patch embedding.

    Args:
        model: with `base_model.embeddings`; its weights are frozen here.
        processor: its image processor.
        images: with labels among the model's classes.
        name: of the model, for records.
        seed: of the scorer, the images' order and noise.
    """

    name = "patch"

    def __init__(self, model: Any, processor: Any, images: LabelledImages, *, name: str, seed: int) -> None:
        self.classifier = model.eval().requires_grad_(False)
        self.processor, self.images = processor, images
        self.model, self.data, self.seed = name, images.name, seed
        self.device = next(model.parameters()).device
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.scorer: nn.Module = PatchScorer(model.config.hidden_size).to(self.device)
        self.split = split(len(images), fraction=1, num_validation=min(HELD_OUT, len(images) // 2), seed=seed)
        self._encoded: dict[tuple[int, int, bool], Patches] = {}

    @property
    def num_tokens(self) -> int:
        """Return N."""
        return int(self.classifier.base_model.embeddings.patch_embeddings.num_patches)

    def load_scorer(self, folder: Path) -> int:
        """Refuse: `dpbench train` trains the scorer behind a projector.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"--checkpoints {folder}: scorers of `dpbench train` sit behind a projector; a classifier is probed with a "
            "fresh one, remove the flag"
        )

    @torch.no_grad()
    def load_batch(self, number: int, size: int, *, held_out: bool = False) -> Patches:
        """Read and embed images, each batch once.

        Raises:
            ConfigError: there are not so many images.
        """
        key = number, size, held_out
        if key not in self._encoded:
            self._encoded[key] = self._embed(self._indices(number, size, held_out))
        return self._encoded[key]

    def _indices(self, number: int, size: int, held_out: bool) -> Sequence[int]:
        indices = self.split.validation if held_out else self.split.training
        chosen: Sequence[int] = np.asarray(indices)[number * size : (number + 1) * size].tolist()
        if len(chosen) < size:
            raise ConfigError(
                f"--data {self.data}: {len(indices)} {'held-out' if held_out else 'training'} images are fewer than "
                f"{number + 1} batches of {size}; give more data or fewer --param batches"
            )
        return chosen

    def _embed(self, indices: Sequence[int]) -> Patches:
        images, labels = zip(*(self.images[index] for index in indices), strict=True)
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.classifier.dtype)
        embeds = self.classifier.base_model.embeddings(pixels)
        return Patches(pixels, embeds, embeds.shape[1] - self.num_tokens, torch.tensor(labels, device=self.device))

    def tokens(self, batch: Patches) -> Tensor:
        """Return the patches, (B, N, D)."""
        return batch.embeds_BLD[:, batch.num_front :]

    def logits(self, batch: Patches) -> Tensor:
        """Score every patch, (B, N)."""
        return self.scorer(self.tokens(batch))  # type: ignore[no-any-return]

    def valid(self, batch: Patches) -> Tensor:
        """Return that every patch is read, (B, N) bool."""
        return torch.ones(self.tokens(batch).shape[:2], dtype=torch.bool, device=self.device)

    def budgets(self, batch: Patches, keep: Budget) -> Tensor:
        """Return the budget of each image, (B,) float64."""
        count = keep if isinstance(keep, int) else max(1.0, keep * self.num_tokens)
        return torch.full((len(batch.labels_B),), float(count), dtype=torch.float64, device=self.device)

    def predict(self, batch: Patches, tokens_RND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the classes, (B, V), and the classes, (B,) int64."""
        front = batch.embeds_BLD[:, : batch.num_front]
        with self._embedded(torch.cat([front, tokens_RND.to(front.dtype)], 1)):
            logits = self.classifier(batch.pixels).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.labels_B

    def predict_kept(self, batch: Patches, kept_RN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same with the other patches removed; as many stay in every image."""
        tokens = self.tokens(batch)
        return self.predict(batch, tokens[kept_RN].view(len(tokens), -1, tokens.shape[-1]))

    @contextmanager
    def _embedded(self, embeds_BLD: Tensor) -> Iterator[None]:
        """Put these tokens in the place of what the patch embedding returns."""
        handle = self.classifier.base_model.embeddings.register_forward_hook(lambda *_: embeds_BLD)
        try:
            yield
        finally:
            handle.remove()


def open_patch_site(classifier: str, data: str, *, seed: int, device: str) -> PatchSite:
    """Load a classifier from a folder or the hub's cache, and its images.

    Args:
        classifier: folder, or hub repository such as facebook/deit-base-patch16-224.
        data: folder or parquet files of images with classes.
        seed: of the scorer, the images' order and noise.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: the model has other weights than its configuration says, or no patch embedding; the data have other
            classes.
        MissingError: weights or data are not there.
    """
    folder = _locate(classifier)
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--classifier {classifier}: not an image classifier of transformers ({reason})") from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"--classifier {classifier}: {len(missing)} weights are missing ({missing[0]}, ...); fetch the model again"
        )
    embeddings = getattr(model.base_model, "embeddings", None)
    if not hasattr(getattr(embeddings, "patch_embeddings", None), "num_patches"):
        kind = model.config.model_type
        raise ConfigError(f"--classifier {classifier}: {kind} has no patches to score; give a ViT or DeiT")
    images = open_labelled_images(data, model.config.num_labels)
    return PatchSite(model.to(device), processor, images, name=Path(classifier).name, seed=seed)


def _locate(classifier: str) -> Path:
    """Return the folder of a classifier, on disk or in the hub's cache; nothing is asked of the hub.

    Raises:
        MissingError: it is in neither.
    """
    folder = Path(classifier).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(classifier, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise MissingError(
            f"--classifier {classifier}: neither a folder with a model nor in the hub's cache; hf download {classifier}"
        ) from None
