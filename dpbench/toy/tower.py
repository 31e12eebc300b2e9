"""Stage 1 of toy-llava: a CLIP vision tower with a trained CLS token.

It learns what a caption of the scene says about each place (shape, colour, size, glyph, or nothing), twice: from
the CLS token after the last layer, so that CLS attention means something, and by nine queries that cross-attend to the
patches of the select layer, a one-step caption decoder. No label says which patch holds what. Both readers are
discarded after training.

Shape letters: B scenes, P places (9), L labels of one attribute, N patches, C width.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from dpbench.storage import files
from dpbench.toy.optimizer import MuonAdamW
from dpbench.toy.scenes import COLOURS, GLYPHS, PLACES, SHAPES, SIZES, Scene, draw, training_scene

STAGE = "stage 1, vision tower"
SELECT_LAYER = -2
MEAN, STD = 0.45, 0.25
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS),
    "size": ("", *SIZES),
    "glyph": ("", *GLYPHS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerStage:
    """Size of the tower and length of its training."""

    width: int = 128
    layers: int = 6
    steps: int = 2500
    batch: int = 64


def tower_config(stage: TowerStage) -> CLIPVisionConfig:
    """Return the CLIP configuration: 96x96 pixels, patches of 8, 144 patches and one CLS token."""
    return CLIPVisionConfig(
        hidden_size=stage.width,
        intermediate_size=3 * stage.width,
        num_hidden_layers=stage.layers,
        num_attention_heads=stage.width // 32,
        image_size=96,
        patch_size=8,
        projection_dim=stage.width,
        hidden_act="gelu",
    )


def fresh_tower(stage: TowerStage) -> CLIPVisionModel:
    """Return an untrained tower whose position codes start as 2-D sines and cosines, so that places differ at once.

    Attention is eager in training only: on CPU its backward pass is faster than SDPA's at this size.
    """
    config = tower_config(stage)
    config._attn_implementation = "eager"
    tower = CLIPVisionModel(config)
    nn.init.kaiming_uniform_(tower.embeddings.patch_embedding.weight, nonlinearity="linear")
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = sine_positions(12, stage.width) / 2
    return tower


def sine_positions(side: int, width: int) -> Tensor:
    """Return (side^2, width) sine and cosine codes, a quarter of the width each for sin/cos of row/column."""
    row, col = (
        axis.flatten().float() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    frequency = 0.5 ** torch.linspace(0, 5, width // 4)
    angles = [axis[:, None] * frequency for axis in (row, col)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def pixels(images: np.ndarray) -> Tensor:
    """Normalise (B, 96, 96, 3) uint8 as the shipped CLIP image processor does, to (B, 3, 96, 96)."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def place_labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Return per attribute the label at each place, (B, P) int64; 0 where a caption would name nothing."""
    labels = {name: np.zeros((len(scenes), len(PLACES)), dtype=np.int64) for name in ATTRIBUTES}
    for index, scene in enumerate(scenes):
        for item in scene:
            for name, words in ATTRIBUTES.items():
                labels[name][index, PLACES.index(item.place)] = words.index(getattr(item, name))
    return {name: torch.from_numpy(label) for name, label in labels.items()}


class PlaceReader(nn.Module):
    """The two readers of stage 1: from CLS alone, and by cross-attention over the select layer's patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_logits = sum(map(len, ATTRIBUTES.values()))
        self.from_cls = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(PLACES) * self.num_logits)
        )
        self.queries = nn.Parameter(torch.randn(len(PLACES), width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 32, batch_first=True)
        self.from_patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.num_logits))

    def forward(self, cls_BC: Tensor, patches_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, P, all labels) from CLS and from the patches."""
        patches_BNC = self.norm(patches_BNC)
        queries = self.queries.expand(len(cls_BC), -1, -1)
        read, _ = self.attention(queries, patches_BNC, patches_BNC, need_weights=False)
        return self.from_cls(cls_BC).view(len(cls_BC), len(PLACES), -1), self.from_patches(read)


def label_loss(logits: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the share of occupied places whose labels are all right."""
    parts = logits.split([len(words) for words in ATTRIBUTES.values()], dim=-1)
    loss = torch.zeros((), device=logits.device)
    right = torch.ones_like(labels["shape"], dtype=torch.bool)
    occupied = labels["shape"] > 0
    for part, (name, _) in zip(parts, ATTRIBUTES.items(), strict=True):
        losses_BP = nn.functional.cross_entropy(part.flatten(0, 1).float(), labels[name].flatten(), reduction="none")
        weight = torch.where(occupied.flatten(), 1.0, 0.25)
        loss = loss + (losses_BP * weight).sum() / weight.sum()
        right &= part.argmax(-1) == labels[name]
    return loss, right[occupied].float().mean()


def train_tower(
    out: Path, stage: TowerStage, *, seed: int, device: str = "cpu", console: Console | None = None
) -> None:
    """Train the tower and write it with its log to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tower = fresh_tower(stage).to(device)
    reader = PlaceReader(stage.width).to(device)
    optimizer = MuonAdamW([tower, reader], steps=stage.steps, muon_lr=0.02, adam_lr=2e-3)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    log.unlink(missing_ok=True)  # this stage always starts from step 0
    start = time.perf_counter()
    for step in track(range(stage.steps), STAGE, console=console):
        scenes = [training_scene(rng) for _ in range(stage.batch)]
        labels = {name: label.to(device) for name, label in place_labels(scenes).items()}
        with torch.autocast(device, dtype=torch.bfloat16):
            output = tower(pixels(draw(scenes, rng)).to(device), output_hidden_states=True)
            logits = reader(output.pooler_output, output.hidden_states[SELECT_LAYER][:, 1:])
        (cls_loss, cls_right), (patch_loss, patch_right) = (label_loss(part, labels) for part in logits)
        optimizer.step(cls_loss + patch_loss)
        if step % 25 == 0 or step == stage.steps - 1:
            row = {"step": step, "loss_cls": cls_loss.item(), "loss_patches": patch_loss.item()}
            row |= {"objects_cls_ratio": cls_right.item(), "objects_patches_ratio": patch_right.item()}
            row |= {"seconds": round(time.perf_counter() - start, 1)}
            files.append(log, (json.dumps(row) + "\n").encode(), sync=False)
    tower.save_pretrained(out)
