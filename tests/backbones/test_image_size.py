"""What one image may allocate: an elongated or huge one fails with its size, before anything is made of it."""

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torchvision
from PIL import Image
from places import TOY_DATA
from transformers import CLIPImageProcessor

from dpbench import backbones
from dpbench.backbones import miniatures
from dpbench.backbones.llava import Llava
from dpbench.engine.encoding import Encoder
from dpbench.engine.feature_cache import FeatureCache
from dpbench.errors import ImageError
from dpbench.evaluation import answering
from dpbench.machine.image_memory import MOST_PIXELS
from dpbench.manifest.cell import cells
from dpbench.manifest.reading import make_manifest
from dpbench.tasks import lmms_eval_adapter
from dpbench.tasks.data.image_file import open_image

LONG = [(5000, 1), (1, 5000)]


def png(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (9, 99, 9)).save(stream, "PNG")
    return stream.getvalue()


def llava_of_336_pixels(aspect: str) -> Llava:
    backbone = miniatures.backbone("llava")
    assert isinstance(backbone, Llava)
    side = {"height": 336, "width": 336}
    backbone.processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=side)
    backbone.tower.image_size = 336
    backbone.set_image_aspect(aspect)
    return backbone


@pytest.mark.parametrize("size", [(90, 3), (3, 90), (60, 60)])
def test_the_largest_picture_on_the_way_is_known_before_it_is_made(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cropping enlarges first, the shorter side to that of the tower: this is what costs gigabytes."""
    made: list[tuple[int, int]] = []
    resize = torchvision.transforms.v2.functional.resize

    def watched(image: object, size: list[int], *args: object, **settings: object) -> object:
        made.append((size[1], size[0]))
        return resize(image, size, *args, **settings)

    monkeypatch.setattr(torchvision.transforms.v2.functional, "resize", watched)
    backbone = llava_of_336_pixels("crop")
    image = Image.new("RGB", size)
    backbone.preprocess([image])
    assert made == [backbone.enlarged_size(image)]
    assert llava_of_336_pixels("pad").enlarged_size(image) == (max(size), max(size))


@pytest.mark.parametrize("size", LONG)
def test_a_long_image_that_cropping_would_enlarge_fails_with_its_size(size: tuple[int, int]) -> None:
    match = rf"an image of {size[0]} x {size[1]} pixels is too long: .* 1680000 .*crop it"
    for grids in (None, [(3, 3)]):
        with pytest.raises(ImageError, match=match):
            llava_of_336_pixels("crop").preprocess([Image.new("RGB", size)], grids)


def test_a_long_image_is_padded_as_far_as_its_square_is_small_enough() -> None:
    backbone = llava_of_336_pixels("pad")
    assert backbone.preprocess([Image.new("RGB", (2000, 1))])[0].values.shape == (3, 336, 336)
    with pytest.raises(ImageError, match=r"an image of 20000 x 1 pixels is too long: .* 20000 x 20000"):
        backbone.preprocess([Image.new("RGB", (20_000, 1))])


@pytest.mark.parametrize("size", LONG)
def test_llava_next_reads_long_images_at_the_size_of_its_views(size: tuple[int, int]) -> None:
    """Its processor resizes to the views without enlarging first, so nothing is refused."""
    (pixels,) = miniatures.backbone("llava_next").preprocess([Image.new("RGB", size)])
    assert pixels.values[0].shape == (3, 56, 56)
    assert len(pixels.values) <= miniatures.backbone("llava_next").max_views


@pytest.mark.parametrize("size", LONG)
def test_qwen_reads_no_long_images(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels is too long for Qwen"):
        miniatures.backbone("qwen2_5_vl").preprocess([Image.new("RGB", size)])


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_a_huge_image_is_refused_by_every_backbone_and_every_reader(family: str) -> None:
    side = int(MOST_PIXELS**0.5) + 1
    huge = Image.new("L", (side, side))
    with pytest.raises(ImageError, match=f"{side} x {side} pixels is too large, at most 89,478,485 are read"):
        miniatures.backbone(family).preprocess([huge])
    stream = io.BytesIO()
    huge.save(stream, "PNG", compress_level=1)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(Image.DecompressionBombError, match=f"{side} x {side} pixels is too large"),
    ):
        open_image(stream.getvalue())


def test_only_the_sample_of_the_long_image_fails(tmp_path: Path) -> None:
    toy, built = backbones.load("toy-llava"), lmms_eval_adapter.build("pope", TOY_DATA, limit=6)
    long, files = built.requests[2].doc_id, built.files
    built = replace(built, files=lambda doc_id: [png((60_000, 1))] if doc_id == long else files(doc_id), hashes={})
    (cell,) = cells(
        make_manifest({"name": "x", "backbone": "toy-llava", "methods": ["none"], "tasks": ["pope"]}, source="")
    )
    cache = FeatureCache(1 << 20)
    run = answering.open_cell(cell, toy, tmp_path, cache)
    with closing(Encoder(toy, built, cache, frozenset())) as encoder:
        for _ in answering.answer(toy, [run], built, built.requests[:6], 6, encoder):
            pass
    failures = {answer.doc_id: answer.failure for answer in run.journal.answers.values()}
    assert "an image of 60000 x 1 pixels is too long" in (failures.pop(long) or "")
    assert set(failures.values()) == {None}
