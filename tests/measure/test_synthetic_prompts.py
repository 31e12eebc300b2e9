"""Prompts of a profile have the requested number of text tokens, and images that differ from batch to batch."""

import numpy as np
import pytest
import torch

from dpbench.backbones import miniatures
from dpbench.engine.decision import Rule
from dpbench.errors import ConfigError
from dpbench.measure.synthetic_prompts import PromptShape, build_prompts, usual_size
from dpbench.method import Method

SIZE = (112, 112)


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("text_tokens", [30, 66, 300])
def test_a_prompt_has_exactly_the_requested_number_of_text_tokens(family: str, text_tokens: int) -> None:
    backbone, shape = miniatures.backbone(family), PromptShape(image_hw=SIZE, text_tokens=text_tokens, num_images=2)
    (prompt,) = build_prompts(backbone, Method(), Rule(), shape, shape.noise_images("llava-1.5", 0))
    visual = sum(stop - start for start, stop in prompt.spans)
    assert len(prompt.ids_L) - visual == text_tokens
    if prompt.positions_PL is not None:
        assert prompt.positions_PL.shape == (3, len(prompt.ids_L))
        later = prompt.positions_PL[:, prompt.spans[-1][1] :]
        assert torch.equal(later.diff(), torch.ones_like(later[:, 1:])), "text positions follow without gaps"


def test_too_few_text_tokens_are_refused_with_the_minimum() -> None:
    backbone, shape = miniatures.backbone("llava"), PromptShape(image_hw=SIZE, text_tokens=1)
    with pytest.raises(ConfigError, match=r"--text-tokens: the conversation has (\d+) before the question, got 1") as e:
        build_prompts(backbone, Method(), Rule(), shape, shape.noise_images("llava-1.5", 0))
    least = int(str(e.value).removesuffix(" or more").split()[-1])
    enough = PromptShape(image_hw=SIZE, text_tokens=least)
    assert build_prompts(backbone, Method(), Rule(), enough, enough.noise_images("llava-1.5", 0))


def test_images_differ_within_and_between_batches_and_depend_only_on_the_seed() -> None:
    shape = PromptShape(image_hw=(20, 30), batch_size=2, num_images=2)
    first, second, again = (shape.noise_images("llava-1.5", seed) for seed in (0, 1, 0))
    images = [np.asarray(image) for batch in (first, second) for prompt in batch for image in prompt]
    assert {image.shape for image in images} == {(20, 30, 3)}
    assert len({image.tobytes() for image in images}) == 8
    assert np.array_equal(np.asarray(again[1][1]), np.asarray(first[1][1]))


def test_the_usual_size_fills_every_tile_and_gives_1296_native_tokens() -> None:
    assert usual_size("llava-1.5") == (336, 336)
    assert usual_size("llava-next") == (672, 672)
    height, width = usual_size("qwen2.5-vl")
    assert (height // 28) * (width // 28) == 1296
