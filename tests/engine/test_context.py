"""A sample fits if its unpruned prompt and its longest answer have positions within the model's context."""

from collections.abc import Callable

import pytest
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.engine.context import count_positions, explain_overflow


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_the_last_token_of_the_longest_answer_must_fit(
    family: str, picture: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = miniatures.backbone(family)
    prompt = backbone.prompt([picture(0)], "What is on the table?")
    length = count_positions(prompt)
    monkeypatch.setattr(backbone.decoder.config, "max_position_embeddings", length + 16)
    assert explain_overflow(backbone, prompt, 16) is None
    assert explain_overflow(backbone, prompt, 17) == (
        f"too long: {length} positions unpruned and 17 for the answer, the model's context is {length + 16}"
    )


def test_positions_are_tokens_or_m_ropes_largest_position(picture: Callable[[int], Image.Image]) -> None:
    llava = miniatures.backbone("llava").prompt([picture(0)], "What?")
    assert count_positions(llava) == len(llava.ids_L)
    qwen = miniatures.backbone("qwen2_5_vl").prompt([picture(0)], "What?")
    (start, stop), (_, rows, columns) = qwen.spans[0], qwen.pixels[0].size
    text = len(qwen.ids_L) - (stop - start)
    assert count_positions(qwen) == text + max(rows, columns) // 2  # an image is as long as its longer side in tokens
