"""The prompts of a profile: noise images and a conversation with a given number of text tokens.

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
"""Number of batches of different images taken in turn, so that no cache holds the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """The sizes of the prompts that a repetition reads.

    Attributes:
        batch_size: prompts at once, each with its own images.
        image_hw: height and width in pixels; None for the family's usual size.
        text_tokens: positions of the prompt outside the images.
        num_images: images in each prompt.
        grid: rows and columns of visual tokens per image, if fewer than usual.
    """

    batch_size: int = 1
    image_hw: tuple[int, int] | None = None
    text_tokens: int = TEXT_TOKENS
    num_images: int = 1
    grid: tuple[int, int] | None = None

    def noise_images(self, backbone: str, seed: int) -> list[list[Image.Image]]:
        """Return the images of each prompt of a batch."""
        generator, (height, width) = np.random.default_rng(seed), self.image_hw or usual_size(backbone)
        shape = (self.batch_size, self.num_images, height, width, 3)
        batch = generator.integers(0, 256, shape, dtype=np.uint8)
        return [[Image.fromarray(pixels) for pixels in prompt] for prompt in batch]


def usual_size(name: str) -> tuple[int, int]:
    """Return the height and width that fill a backbone.

    That is all tiles of AnyRes, and 1,296 tokens of a native-resolution tower.
    """
    family = backbones.find(name)
    side = 672 if family.tiles else 1008 if family.native_resolution else 336
    return side, side


def build_prompts(
    backbone: Backbone, method: Method, rule: decision.Rule, shape: PromptShape, batch: Sequence[Sequence[Image.Image]]
) -> list[Prompt]:
    """Build a batch of prompts as the model's conversation, with the pixels on the backbone's device.

    Raises:
        ConfigError: the conversation alone has more text tokens than `shape` allows.
    """
    prompts = [_build_prompt(backbone, method, rule, shape, images) for images in batch]
    return [_move_pixels(backbone, fit_text(prompt, shape.text_tokens)) for prompt in prompts]


def _build_prompt(
    backbone: Backbone, method: Method, rule: decision.Rule, shape: PromptShape, images: Sequence[Image.Image]
) -> Prompt:
    if shape.grid is None:
        return decision.build_unpruned_prompt(backbone, method, images, QUESTION, rule)
    return backbone.prompt(images, QUESTION, [shape.grid] * len(images))


def fit_text(prompt: Prompt, text_tokens: int) -> Prompt:
    """Lengthen or shorten the text after the last image until the prompt has `text_tokens` text tokens.

    Raises:
        ConfigError: there are already more before the end of the last image.
    """
    visual = sum(stop - start for start, stop in prompt.spans)
    length, least = visual + text_tokens, prompt.spans[-1][1] + 1
    if length < least:
        raise ConfigError(
            f"--text-tokens: the conversation has {least - visual} before the question, got {text_tokens}; "
            f"give {least - visual} or more"
        )
    missing = max(0, length - len(prompt.ids_L))
    ids = torch.cat([prompt.ids_L, prompt.ids_L[-1:].expand(missing)])[:length]
    if prompt.positions_PL is None:
        return replace(prompt, ids_L=ids)
    later = prompt.positions_PL[:, -1:] + torch.arange(1, missing + 1)
    return replace(prompt, ids_L=ids, positions_PL=torch.cat([prompt.positions_PL, later], 1)[:, :length])


def _move_pixels(backbone: Backbone, prompt: Prompt) -> Prompt:
    pixels = tuple(replace(image, values=image.values.to(backbone.device, backbone.dtype)) for image in prompt.pixels)
    return replace(prompt, pixels=pixels)
