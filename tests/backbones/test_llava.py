"""The signals that methods read from the tower equal what eager attention returns."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpbench import backbones
from dpbench.backbones.llava import Llava
from dpbench.errors import ConfigError, MissingError


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
