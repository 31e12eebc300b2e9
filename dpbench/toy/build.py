"""Build toy-llava: train the tower, then the decoder. A stage whose result exists is not run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rich.console import Console

from dpbench.toy.llava import LlavaStage, train_llava
from dpbench.toy.tokenizer import make_processor
from dpbench.toy.tower import TowerStage, train_tower

SCALES = {
    "small": (TowerStage(steps=1000), LlavaStage()),
    "full": (TowerStage(steps=4000), LlavaStage(phases=(*LlavaStage().phases[:-1], ("everything", 12000)), batch=32)),
}
_MODEL = "model.safetensors"


def build(out: Path, *, seed: int = 0, scale: str = "small", device: str = "auto", compiled: bool = False) -> Path:
    """Train toy-llava and return the folder with weights, processor and logs.

    Args:
        out: gets `tower` and `weights`, each with the log of its stage, `log.jsonl`.
        seed: seed of weights, scenes and questions.
        scale: a key of SCALES.
        device: "auto", "cpu" or "cuda".
        compiled: compile the decoder's layers; on a CPU this needs a C++ compiler and halves the time of a step.
    """
    console = Console(stderr=True)
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    tower_stage, llava_stage = SCALES[scale]
    tower, weights = out / "tower", out / "weights"
    if not (tower / _MODEL).is_file():
        train_tower(tower, tower_stage, seed=seed, device=device, console=console)
    if not (weights / _MODEL).is_file():
        train_llava(
            weights,
            tower,
            make_processor(seed),
            llava_stage,
            seed=seed,
            device=device,
            compiled=compiled,
            console=console,
        )
        shutil.copy(tower / "log.jsonl", weights / "log_tower.jsonl")
        shutil.copy(weights / "log.jsonl", weights / "log_llava.jsonl")
    console.print(f"toy-llava is in {weights}; run it with weights: {weights} in a manifest")
    return weights
