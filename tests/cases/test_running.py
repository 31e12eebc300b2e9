"""Cases of running that no other test states: which part of an image a square shows."""

import numpy as np
import pytest
from PIL import Image

from dpbench import backbones
from dpbench.backbones.base import Backbone


def marked(size: tuple[int, int]) -> Image.Image:
    """A black picture with a white bar along one of its short edges, where a crop to the middle loses it."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if size[0] > size[1]:
        pixels[:, : size[0] // 10] = 255
    else:
        pixels[: size[1] // 10] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=["pad", "crop"])
def backbone(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    return request.param, backbones.load("toy-llava", image_aspect=request.param)


@pytest.mark.parametrize("grid", [None, [(2, 2)]], ids=["whole", "downsample"])
@pytest.mark.parametrize("size", [(80, 48), (48, 80), (200, 50)])
def test_the_edges_of_an_image_are_seen_where_it_is_padded_whole_and_downsampled(
    backbone: tuple[str, Backbone], size: tuple[int, int], grid: list[tuple[int, int]] | None
) -> None:
    """LLaVA-1.5's own evaluation pads; the smaller square of `downsample` shows as much as the whole one does."""
    aspect, model = backbone
    brightest, white, black = (
        float(model.preprocess([image], grid)[0].values.max())
        for image in (marked(size), Image.new("RGB", size, "white"), Image.new("RGB", (48, 48), "black"))
    )
    is_seen = (brightest - black) / (white - black) > 0.75
    assert is_seen == (aspect == "pad")
