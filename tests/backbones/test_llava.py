"""The signals that methods read from the tower equal what eager attention returns."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpbench import backbones
from dpbench.backbones.llava import Llava
from dpbench.errors import ConfigError, MissingError, UnsupportedError


def test_cls_rows_equal_eager_attention_while_the_tower_stays_sdpa(
    tiny: Llava, picture: Callable[[int], Image.Image]
) -> None:
    prompt = tiny.prompt([picture(1), picture(2)], "x")
    features = tiny.encode(prompt.pixels, frozenset({"cls_attention", "keys_Nd"}))
    assert tiny.core.vision_tower.config._attn_implementation == "sdpa"
    tower = copy.deepcopy(tiny.core.vision_tower)
    tower.set_attn_implementation("eager")
    seen = tower(torch.stack([each.values for each in prompt.pixels]).double(), output_attentions=True)
    layer = tiny.tower.select_layer
    assert layer == len(tower.encoder.layers) - 2
    for image, each in enumerate(features):
        assert set(each.cls_attention) == {layer}
        wanted = seen.attentions[layer][image, :, 0, 1:]
        torch.testing.assert_close(each.cls_attention[layer], wanted.float(), rtol=1e-5, atol=1e-7)
        assert each.keys_Nd is not None
        assert each.keys_Nd.shape == (144, 16)


@pytest.mark.parametrize("also", [frozenset(), frozenset({"cls_attention"})])
def test_the_first_layers_cls_rows_come_when_asked_for(
    also: frozenset[str], tiny: Llava, picture: Callable[[int], Image.Image]
) -> None:
    prompt = tiny.prompt([picture(1)], "x")
    (features,) = tiny.encode(prompt.pixels, also | {"cls_attention[0]"})
    tower = copy.deepcopy(tiny.core.vision_tower)
    tower.set_attn_implementation("eager")
    seen = tower(prompt.pixels[0].values[None].double(), output_attentions=True)
    assert set(features.cls_attention) == ({0, tiny.tower.select_layer} if also else {0})
    for layer, rows in features.cls_attention.items():
        torch.testing.assert_close(rows, seen.attentions[layer][0, :, 0, 1:].float(), rtol=1e-5, atol=1e-7)


def test_signals_that_were_not_asked_for_are_absent(tiny: Llava, picture: Callable[[int], Image.Image]) -> None:
    (features,) = tiny.encode(tiny.prompt([picture(1)], "x").pixels)
    assert features.cls_attention == {}
    assert features.keys_Nd is None


def test_rows_and_columns_are_raster_order(tiny: Llava, picture: Callable[[int], Image.Image]) -> None:
    (features,) = tiny.encode(tiny.prompt([picture(1)], "x").pixels)
    assert torch.equal(features.row_N * 12 + features.col_N, torch.arange(144))


def test_unknown_backbone_and_missing_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'toy-llava'"):
        backbones.find("toy-lava")
    with pytest.raises(MissingError, match=r"lacks config\.json"):
        backbones.locate("toy-llava", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match=r"hf download llava-hf/llava-1\.5-7b-hf"):
        backbones.locate("llava-1.5")


ODD_SIZES = [(640, 480), (333, 500), (97, 31), (1000, 999), (31, 640), (336, 336)]
"""Width and height."""


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def padded(image: Image.Image, mean: list[float], std: list[float], side: int) -> np.ndarray:
    """LLaVA-1.5's published preprocessing: mean colour to a square, bicubic by Pillow, CLIP's normalisation."""
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), tuple(int(255 * value) for value in mean))
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    resized = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) / 255).astype(np.float32)
    return ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_llava_15_pads_to_a_square_of_the_mean_colour_as_published(size: tuple[int, int]) -> None:
    model, image = backbones.load("llava-1.5", weights="random", device="meta"), noise(size)
    theirs = model.processor.image_processor
    (pixels,) = model.preprocess([image])
    np.testing.assert_array_equal(pixels.values.numpy(), padded(image, theirs.image_mean, theirs.image_std, 336))
    assert pixels.rows == 576


def test_crop_is_what_the_hubs_processor_does() -> None:
    model = backbones.load("llava-1.5", weights="random", device="meta", image_aspect="crop")
    for size in ODD_SIZES:
        expected = model.processor.image_processor([noise(size)], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(model.preprocess([noise(size)])[0].values, expected, rtol=0, atol=0)


def test_a_square_image_is_the_same_padded_or_cropped_and_an_odd_one_is_not() -> None:
    pad, crop = (backbones.load("toy-llava", image_aspect=aspect) for aspect in ("pad", "crop"))
    for size, is_same in (((96, 96), True), ((96, 64), False)):
        pair = [model.preprocess([noise(size)])[0].values for model in (pad, crop)]
        assert torch.allclose(*pair, rtol=0, atol=1e-6) is is_same


@pytest.mark.parametrize("size", [(300, 200), (200, 300)], ids=str)
def test_a_smaller_picture_is_padded_too(size: tuple[int, int]) -> None:
    """`downsample` reads a smaller square: its border is the mean colour, 0 after normalisation to a grey level."""
    model = backbones.load("llava-1.5", weights="random", device="meta")
    (pixels,) = model.preprocess([noise(size)], [(12, 12)])
    assert pixels.values.shape == (3, 168, 168)
    border = pixels.values[:, :24] if size[0] > size[1] else pixels.values[:, :, :24]
    assert border.abs().max() < 0.02
    assert pixels.values[:, 84, 84].abs().max() > 0.02
    assert model.preprocess([noise(size)], [(8, 9)])[0].values.shape == (3, 8 * 14, 9 * 14)


@pytest.mark.parametrize("name", ["llava-next", "qwen2.5-vl-3b"])
def test_other_towers_have_no_image_aspect(name: str) -> None:
    with pytest.raises(UnsupportedError, match="reads images of any shape"):
        backbones.load(name, weights="random", device="meta", image_aspect="pad")
