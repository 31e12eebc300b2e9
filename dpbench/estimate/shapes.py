"""The shapes of a backbone on one usual prompt, from its configuration: no weights are read.

An image is of the size that fills the backbone (`synthetic_prompts.usual_size`), and a prompt has as many text tokens
as in the published FLOPs tables. Benchmarks have smaller images and longer questions too; the text says what it took.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from dpbench import backbones
from dpbench.errors import ConfigError, MissingError
from dpbench.manifest.schema import BackboneEntry, Manifest
from dpbench.measure.synthetic_prompts import TEXT_TOKENS, usual_size


@dataclass(frozen=True, slots=True)
class Shapes:
    """Lengths and sizes of one prompt.

    Attributes:
        config: transformers' configuration of the model.
        num_views: of the image.
        grid_hw: rows and columns of visual tokens of one view.
        text_tokens: positions of the prompt that are not visual tokens.
    """

    config: Any
    num_views: int
    grid_hw: tuple[int, int]
    text_tokens: int = TEXT_TOKENS

    @property
    def num_visual(self) -> int:
        """Return the visual tokens of the unpruned image."""
        return self.num_views * self.grid_hw[0] * self.grid_hw[1]

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return int(self.config.text_config.num_hidden_layers)


def load_shapes(part: Manifest) -> Shapes:
    """Return the shapes of a manifest's backbone: of the weights that are there, else of the published ones."""
    family, config = backbones.find(part.backbone.name), load_config(part.backbone)
    height, width = usual_size(part.backbone.name)
    if family.native_resolution:
        step = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        most = part.resolved_protocol().max_pixels or height * width
        shrink = min(1.0, (most / (height * width)) ** 0.5)
        return Shapes(config, 1, (max(1, int(height * shrink) // step), max(1, int(width * shrink) // step)))
    side = config.vision_config.image_size
    tiles = [h // side * (w // side) for h, w in config.image_grid_pinpoints] if family.tiles else []
    rows = side // config.vision_config.patch_size
    return Shapes(config, 1 + max(tiles, default=0), (rows, rows))


def load_config(entry: BackboneEntry) -> Any:
    """Return a backbone's configuration, from its weights if they are there, else as published."""
    from dpbench.backbones.architectures import ARCHITECTURES

    try:
        folder = backbones.locate(entry.name, entry.weights, entry.revision)
    except (ConfigError, MissingError):
        return ARCHITECTURES[entry.name].config()
    module = importlib.import_module(f"dpbench.backbones.{backbones.find(entry.name).module.split(':')[0]}")
    return module.MODEL.config_class.from_pretrained(folder)


def count_parameters(entry: BackboneEntry) -> int:
    """Return a backbone's number of parameters, as `dpbench list backbones` states it: to two digits."""
    number, unit = backbones.find(entry.name).parameters.split()
    return round(float(number) * {"M": 1e6, "B": 1e9}[unit])
