"""Prompts of a profile: exactly so many text tokens, images that differ, a sweep over numbers of them."""

import numpy as np
import pytest
import torch

from dpbench.backbones import miniatures as tinies
from dpbench.engine.decision import Rule
from dpbench.errors import ConfigError
from dpbench.measure.synthetic_prompts import Inputs, prompts, usual_size
from dpbench.method import Method

SIZE = (112, 112)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("text_tokens", [30, 66, 300])
def test_a_prompt_has_exactly_so_many_text_tokens(family: str, text_tokens: int) -> None:
    backbone, asked = tinies.backbone(family), Inputs(image_hw=SIZE, text_tokens=text_tokens, num_images=2)
    (prompt,) = prompts(backbone, Method(), Rule(), asked, asked.images("llava-1.5", 0))
    visual = sum(stop - start for start, stop in prompt.spans)
    assert len(prompt.ids_L) - visual == text_tokens
    if prompt.positions_PL is not None:
        assert prompt.positions_PL.shape == (3, len(prompt.ids_L))
        later = prompt.positions_PL[:, prompt.spans[-1][1] :]
        assert torch.equal(later.diff(), torch.ones_like(later[:, 1:])), "text is numbered on, without gaps"


def test_too_few_text_tokens_are_refused_with_the_least_that_do() -> None:
    backbone, asked = tinies.backbone("llava"), Inputs(image_hw=SIZE, text_tokens=1)
    with pytest.raises(ConfigError, match=r"--text-tokens: the conversation has (\d+) before the question, got 1") as e:
        prompts(backbone, Method(), Rule(), asked, asked.images("llava-1.5", 0))
    least = int(str(e.value).removesuffix(" or more").split()[-1])
    enough = Inputs(image_hw=SIZE, text_tokens=least)
    assert prompts(backbone, Method(), Rule(), enough, enough.images("llava-1.5", 0))


def test_images_of_a_batch_and_of_its_successor_differ_and_come_again_by_seed() -> None:
    asked = Inputs(image_hw=(20, 30), batch_size=2, num_images=2)
    first, second, again = (asked.images("llava-1.5", seed) for seed in (0, 1, 0))
    flat = [np.asarray(each) for batch in (first, second) for prompt in batch for each in prompt]
    assert {each.shape for each in flat} == {(20, 30, 3)}
    assert len({each.tobytes() for each in flat}) == 8
    assert np.array_equal(np.asarray(again[1][1]), np.asarray(first[1][1]))


def test_the_usual_size_fills_every_tile_and_gives_1296_native_tokens() -> None:
    assert usual_size("llava-1.5") == (336, 336)
    assert usual_size("llava-next") == (672, 672)
    height, width = usual_size("qwen2.5-vl")
    assert (height // 28) * (width // 28) == 1296
