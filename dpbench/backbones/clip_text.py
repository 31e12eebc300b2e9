"""The text tower that a CLIP vision tower was trained with: a second model, to compare patches with a question.

Shape letters: N visual tokens, C the vision tower's width, E the shared space's, M pieces of text, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.utils.logging import disable_progress_bar

from dpbench.backbones.base import Backbone
from dpbench.errors import MissingError, UnsupportedError
from dpbench.method import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTowers:
    """The final norm and projection of a CLIP vision tower, and its text tower; in float32.

    Attributes:
        norm: the vision tower's last norm.
        image_projection: into the shared space.
        text_tower: ids to a pooled state.
        text_projection: into the shared space.
        tokenize: text to ids, int64 (1, T), begin and end marks included.
    """

    norm: Any
    image_projection: Any
    text_tower: Any
    text_projection: Any
    tokenize: Callable[[str], Tensor]

    def image(self, visual: VisualTokens) -> Tensor:
        """Return the select layer's patches behind norm and projection, (N, E)."""
        projected: Tensor = self.image_projection(self.norm(visual.hidden_NC.float().to(self._device)))
        return projected

    def text(self, question: str) -> Tensor:
        """Return the question, in pieces as long as the tower reads, (M, E)."""
        ids, real = split_into_pieces(self.tokenize(question), self.text_tower.config.max_position_embeddings)
        pooled = self.text_tower(input_ids=ids.to(self._device), attention_mask=real.to(self._device)).pooler_output
        projected: Tensor = self.text_projection(pooled)
        return projected

    @property
    def _device(self) -> torch.device:
        return self.text_projection.weight.device  # type: ignore[no-any-return]


def split_into_pieces(ids_1T: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut ids into pieces, the last filled up with zeros; returns them and which ids are real, int64 (M, size) each."""
    missing = -ids_1T.shape[1] % size
    ids, real = (pad(row, (0, missing)).view(-1, size) for row in (ids_1T, torch.ones_like(ids_1T)))
    return ids, real


def files(clip: str) -> tuple[Path, ...]:
    """Return weights, configuration and tokenizer of a CLIP model.

    Args:
        clip: a folder, or a hub repository in the hub's cache; the hub itself is not asked.

    Raises:
        MissingError: it is in neither, or incomplete.
    """
    folder = _folder(clip)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    config, tokenizer = folder / "config.json", sorted(folder.glob("tokenizer.json")) or sorted(folder.glob("vocab.*"))
    if not (weights and config.is_file() and tokenizer):
        raise MissingError(f"the CLIP model in {folder} lacks config.json, tokenizer.json or *.safetensors")
    return (*weights, config, *tokenizer)


def load(clip: str, backbone: Backbone) -> ClipTowers:
    """Load a CLIP model's text tower and projections onto the backbone's device.

    Raises:
        MissingError: it is not there.
        UnsupportedError: its vision tower is not as wide as the backbone's, so it is another one.
    """
    files(clip)
    disable_progress_bar()
    folder = _folder(clip)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    own, theirs = _width(backbone), model.config.vision_config.hidden_size
    if own != theirs:
        raise UnsupportedError(
            f"the vision tower of {backbone.name} is {own} wide and that of the CLIP model {clip} {theirs}: "
            "it was not taken from this one; name the one it was taken from"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _towers(model, lambda text: tokenizer(text, return_tensors="pt")["input_ids"], backbone)


def build_untrained(backbone: Backbone) -> ClipTowers:
    """Return untrained towers that fit a backbone's, as large as ViT-L/14's for its width; for timing and checks.

    They read ids of the backbone's own tokenizer.
    """
    width = _width(backbone)
    num_heads = max(1, 3 * width // 256)
    text = {"hidden_size": 64 * num_heads, "intermediate_size": 256 * num_heads, "num_attention_heads": num_heads}
    vision = {"hidden_size": width, "intermediate_size": 1, "num_attention_heads": 1, "num_hidden_layers": 1}
    text |= {"eos_token_id": 2}  # as OpenAI's checkpoints say: pooled is the state of the highest id
    shared = {"projection_dim": 64 * num_heads}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text | shared, vision_config=vision | shared, **shared))
    tokenizer, size = backbone.processor.tokenizer, model.config.text_config.vocab_size
    return _towers(model, lambda text: tokenizer(text, return_tensors="pt")["input_ids"] % size, backbone)


def _towers(model: Any, tokenize: Callable[[str], Tensor], backbone: Backbone) -> ClipTowers:
    """Take what is needed of a `CLIPModel` to the backbone's device."""
    parts = {
        "norm": model.vision_model.post_layernorm,
        "image_projection": model.visual_projection,
        "text_tower": model.text_model,
        "text_projection": model.text_projection,
    }
    ready = {name: part.eval().requires_grad_(False).to(backbone.device) for name, part in parts.items()}
    return ClipTowers(**ready, tokenize=tokenize)


def _width(backbone: Backbone) -> int:
    return backbone.model.config.vision_config.hidden_size  # type: ignore[no-any-return]


def _folder(clip: str) -> Path:
    if Path(clip).expanduser().is_dir():
        return Path(clip).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(clip, local_files_only=True))
    except HFValidationError:
        raise MissingError(f"the CLIP model {clip} is neither a local folder nor a valid hub repository name") from None
    except LocalEntryNotFoundError:
        raise MissingError(
            f"the CLIP model {clip} is neither a local folder nor in the hub's cache; fetch it with: hf download {clip}"
        ) from None
