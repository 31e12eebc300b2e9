"""The prompts of a profile: images of noise and a conversation with a given number of text tokens.

Shape letters: L prompt positions, P position axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from dpbench import backbones
from dpbench.backbones.base import Backbone, Prompt
from dpbench.engine import decision
from dpbench.errors import ConfigError
from dpbench.method import Method

QUESTION = "Is there a red circle in the image?\nAnswer the question using a single word or phrase."
TEXT_TOKENS = 66
"""Text positions of a prompt, as in the published FLOPs tables."""
ROTATION = 4
"""Different batches of images taken in turn, so that no cache holds the one that comes next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a repetition reads.

    Attributes:
        batch_size: prompts at once, each with images of its own.
        image_hw: pixels, height and width; None for the family's usual size.
        text_tokens: positions of the prompt outside the images.
        num_images: images in each prompt.
        grid: rows and columns of visual tokens per image where they shall be fewer than usual, or None.
    """

    batch_size: int = 1
    image_hw: tuple[int, int] | None = None
    text_tokens: int = TEXT_TOKENS
    num_images: int = 1
    grid: tuple[int, int] | None = None

    def images(self, name: str, seed: int) -> list[list[Image.Image]]:
        """Return the images of every prompt of a batch, of noise."""
        noise, (height, width) = np.random.default_rng(seed), self.image_hw or usual_size(name)
        shape = (self.batch_size, self.num_images, height, width, 3)
        return [[Image.fromarray(each) for each in prompt] for prompt in noise.integers(0, 256, shape, dtype=np.uint8)]


def usual_size(name: str) -> tuple[int, int]:
    """Return height and width that fill a backbone: all tiles of AnyRes, 1,296 tokens of a native-resolution tower."""
    family = backbones.find(name)
    side = 672 if family.tiles else 1008 if family.native_resolution else 336
    return side, side


def prompts(
    backbone: Backbone, method: Method, rule: decision.Rule, inputs: Inputs, images: Sequence[Sequence[Image.Image]]
) -> list[Prompt]:
    """Build a batch of prompts as the model's conversation, with the pixels on the backbone's device.

    Raises:
        ConfigError: the conversation alone has more text tokens than asked for.
    """
    return [_on_device(backbone, with_text(_prompt(backbone, method, rule, inputs, each), inputs)) for each in images]


def _prompt(
    backbone: Backbone, method: Method, rule: decision.Rule, inputs: Inputs, images: Sequence[Image.Image]
) -> Prompt:
    if inputs.grid is None:
        return decision.build_prompt(backbone, method, images, QUESTION, rule)
    return backbone.prompt(images, QUESTION, [inputs.grid] * len(images))


def with_text(prompt: Prompt, inputs: Inputs) -> Prompt:
    """Lengthen or shorten the text behind the last image until the prompt has so many text tokens.

    Raises:
        ConfigError: there are too many before the end of the last image.
    """
    visual = sum(stop - start for start, stop in prompt.spans)
    length, least = visual + inputs.text_tokens, prompt.spans[-1][1] + 1
    if length < least:
        raise ConfigError(
            f"--text-tokens: the conversation has {least - visual} before the question, got {inputs.text_tokens}; "
            f"give {least - visual} or more"
        )
    missing = max(0, length - len(prompt.ids_L))
    ids = torch.cat([prompt.ids_L, prompt.ids_L[-1:].expand(missing)])[:length]
    if prompt.positions_PL is None:
        return replace(prompt, ids_L=ids)
    later = prompt.positions_PL[:, -1:] + torch.arange(1, missing + 1)
    return replace(prompt, ids_L=ids, positions_PL=torch.cat([prompt.positions_PL, later], 1)[:, :length])


def _on_device(backbone: Backbone, prompt: Prompt) -> Prompt:
    pixels = tuple(replace(each, values=each.values.to(backbone.device, backbone.dtype)) for each in prompt.pixels)
    return replace(prompt, pixels=pixels, ids_L=prompt.ids_L)
