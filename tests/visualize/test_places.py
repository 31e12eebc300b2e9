"""A patch is drawn where the tower read it: images of four colours, wide, tall and small, on every kind of tower."""

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.budget import BudgetRequest
from dpbench.engine.decision import Rule
from dpbench.report.html.thumbnails import thumbnail
from dpbench.visualize import decisions
from dpbench.visualize.picture import Sheet

COLOURS = np.array([[[220, 20, 20], [20, 200, 20]], [[20, 20, 220], [220, 220, 20]]], dtype=np.uint8)
"""Of the four quarters of an image, by row and column."""
SIZES = [(200, 100), (100, 200), (300, 100), (100, 300), (40, 20), (21, 30), (96, 96)]
Quarter = tuple[float, float]
"""How far down and right a point of an image is, 0-1."""


def quarters(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(COLOURS).resize(size, Image.Resampling.NEAREST)


def llava(aspect: str) -> Backbone:
    backbone = miniatures.backbone("llava")
    backbone.set_image_aspect(aspect)
    return backbone


def where_in_a_crop(at: Quarter, size: tuple[int, int]) -> Quarter:
    """Return where in the whole image a point of its middle square is."""
    width, height = size
    side = min(size)
    return 0.5 + (at[0] - 0.5) * side / height, 0.5 + (at[1] - 0.5) * side / width


def where_in_a_square(at: Quarter, size: tuple[int, int]) -> Quarter:
    """Return where in the whole image a point of the square around it is, outside 0-1 in the bars."""
    width, height = size
    side = max(size)
    return 0.5 + (at[0] - 0.5) * side / height, 0.5 + (at[1] - 0.5) * side / width


def where_it_is(at: Quarter, size: tuple[int, int]) -> Quarter:
    return at


def check(sheet: Sheet, tokens: NDArray[np.int64], size: tuple[int, int], where: Callable[..., Quarter]) -> None:
    """Check the colour at four points of each drawn patch against the image, but for those near a border."""
    corners = sheet.corner_N2[tokens]
    left, top = corners.min(0)
    width, height = corners.max(0) + sheet.cell - (left, top)
    compared = 0
    for x, y in corners + sheet.cell // 8:
        for at_x, at_y in (
            (x + right, y + down) for right in (0, 3 * sheet.cell // 4) for down in (0, 3 * sheet.cell // 4)
        ):
            down, right = where(((at_y - top + 0.5) / height, (at_x - left + 0.5) / width), size)
            if all(0.03 < side < 0.97 and abs(side - 0.5) > 0.08 for side in (down, right)):
                wanted = COLOURS[int(down > 0.5), int(right > 0.5)]
                assert sheet.picture[at_y, at_x] == pytest.approx(wanted, abs=45), (at_x, at_y)
                compared += 1
    assert compared >= 4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("aspect", "where"), [("crop", where_in_a_crop), ("pad", where_in_a_square)])
def test_a_square_shows_the_middle_of_the_image_or_all_of_it(
    size: tuple[int, int], aspect: str, where: Callable[..., Quarter]
) -> None:
    (found,) = decisions.decide(llava(aspect), quarters(size), ["random"], Rule(BudgetRequest(keep=20)), "")
    check(found.sheet, np.arange(len(found.sheet.corner_N2)), size, where)
    stream = io.BytesIO()
    quarters(size).save(stream, "PNG")
    uri = thumbnail(stream.getvalue(), "pad" if aspect == "pad" else "centre")
    page = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    drawn = np.asarray(page.resize(found.sheet.picture.shape[1::-1])).astype(int)
    assert np.median(np.abs(drawn - found.sheet.picture)) <= 12


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("aspect", "where"), [("crop", where_in_a_crop), ("pad", where_in_a_square)])
def test_a_smaller_image_shows_the_same_part(size: tuple[int, int], aspect: str, where: Callable[..., Quarter]) -> None:
    (found,) = decisions.decide(llava(aspect), quarters(size), ["downsample"], Rule(BudgetRequest(keep=36)), "")
    assert len(found.sheet.corner_N2) <= 36
    check(found.sheet, np.arange(len(found.sheet.corner_N2)), size, where)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_tiles_and_images_of_their_own_size_show_all_of_the_image(family: str, size: tuple[int, int]) -> None:
    backbone = miniatures.backbone(family)
    (found,) = decisions.decide(backbone, quarters(size), ["random"], Rule(BudgetRequest(prune_rate=0.5)), "")
    drawn = np.flatnonzero(found.sheet.corner_N2[:, 0] >= 0)
    for part in (drawn[:16], drawn[16:]) if family == "llava_next" else (drawn,):  # the base view and the tiles
        check(found.sheet, part, size, where_it_is)
