"""A miniature ViT or DeiT classifier in the hub's layout, and a folder of images with classes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
    "attn_implementation": "eager",
}
MODELS = {"deit": (DeiTConfig, DeiTForImageClassification), "vit": (ViTConfig, ViTForImageClassification)}


def save_classifier(folder: Path, kind: str) -> Path:
    config, model = MODELS[kind]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = model(config(**SHAPE))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    DeiTImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return folder


def save_images(folder: Path, num: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name in ("n01", "n02", "n03"):
        (folder / name).mkdir(parents=True)
        for number in range(num):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder
