"""One function opens images for running, training, drawing, checking data and the page: eight-bit RGB, not clipped."""

import io
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile
from places import TOY_DATA

from dpbench import tasks
from dpbench.diffprune.example import decode
from dpbench.report.html.samples import thumbnail
from dpbench.tasks import lmms_eval_adapter
from dpbench.tasks.data.image_file import UNREADABLE, open_image, refuse_truncated_images
from dpbench.tasks.data.images import Batch
from dpbench.visualize.decisions import read_image

RAMP = np.linspace(0, 1, 80 * 60).reshape(60, 80)
"""Black to white."""


def stored(image: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def scaled(white: float, kind: type[np.generic]) -> Image.Image:
    return Image.fromarray((RAMP * white).astype(kind))


def tiff(values: bytes, *, bits: int, sample_format: int, photometric: int) -> bytes:
    """Return a grey TIFF of two pixels; Pillow writes no such files itself."""
    numbers = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(values)}
    numbers[339] = sample_format
    body = values + bytes(len(values) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(numbers)) + entries + bytes(4)


def grey(file: bytes) -> NDArray[np.float64]:
    """Return an opened file's grey levels, as rows."""
    image = open_image(file)
    assert image.mode == "RGB"
    values = np.asarray(image).astype(np.float64)
    assert (values == values[..., :1]).all()
    return values[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_white_of_sixteen_bits_is_white_and_nothing_is_clipped(kind: str) -> None:
    opened = grey(stored(scaled(65535, np.uint16), kind))
    np.testing.assert_array_equal(opened, np.rint(np.floor(RAMP * 65535) / 257))


@pytest.mark.parametrize(
    ("white", "kind"),
    [
        (255, np.int32), (65535, np.int32), (2**31 - 1, np.int32),
        (1, np.float32), (255, np.float32), (65535, np.float32),
    ],
)  # fmt: skip
def test_white_of_a_type_of_32_bits_is_the_end_of_the_range_that_its_values_need(
    white: float, kind: type[np.generic]
) -> None:
    opened = grey(stored(scaled(white, kind), "TIFF"))
    np.testing.assert_allclose(opened, RAMP * 255, atol=1)
    assert (opened == 255).mean() < 0.01


def test_a_dark_image_of_sixteen_bits_stays_dark() -> None:
    """The type decides, not the values: scaled by its own brightest pixel this one would be white."""
    for kind in ("PNG", "TIFF", "PPM"):
        assert grey(stored(Image.fromarray(np.full((4, 4), 2570, np.uint16)), kind)).tolist() == [[10] * 4] * 4


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "photometric", "levels"),
    [
        pytest.param(b"\xff\xff\0\0", 16, 1, 1, [255, 0], id="16 bits"),
        pytest.param(b"\xff\xff\0\0", 16, 1, 0, [0, 255], id="16 bits, 0 is white"),
        pytest.param(b"\xff\x7f\0\x40", 16, 2, 1, [255, 128], id="16 bits with sign"),
        pytest.param(b"\x7f\x40", 8, 2, 1, [255, 129], id="8 bits with sign"),
        pytest.param(b"\xff\xf8\0", 12, 1, 1, [255, 128], id="12 bits"),
        pytest.param(b"\xff\xff\xff\xff\0\0\0\x80", 32, 1, 1, [255, 128], id="32 bits without sign"),
        pytest.param(b"\xff\xff\xff\x7f\0\0\0\x40", 32, 2, 1, [255, 128], id="32 bits with sign"),
    ],
)
def test_the_header_of_a_tiff_says_what_white_is(
    values: bytes, bits: int, sample_format: int, photometric: int, levels: list[int]
) -> None:
    file = tiff(values, bits=bits, sample_format=sample_format, photometric=photometric)
    assert grey(file).tolist() == [levels]


@pytest.mark.parametrize(("kind", "num_bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_every_kind_of_png_are_scaled_and_alpha_is_left_out(kind: int, num_bands: int) -> None:
    """By PNG's colour type: grey, colours, and both with alpha, which is 0 here."""
    pixels = np.zeros((1, 3, num_bands), ">u2")
    pixels[0, :, : num_bands - (kind >= 4)] = [[0], [32896], [65535]]
    body = zlib.compress(b"\0" + pixels.tobytes())
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, kind, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    assert grey(file).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_eight_bits_are_read_as_pillow_converts_them(mode: str) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    image = Image.fromarray((colours * 255).astype(np.uint8))
    if mode == "LAB":
        image = Image.fromarray((colours * 255).astype(np.uint8)).convert("LAB")
    file = stored(image.convert("L").convert(mode) if mode in ("1", "LA", "PA") else image.convert(mode), "TIFF")
    with Image.open(io.BytesIO(file)) as opened:
        expected = opened.convert("RGB")
    assert open_image(file).tobytes() == expected.tobytes()


def with_first_image(folder: Path, split: str, file: bytes) -> Path:
    """Copy a split of the toy data with another image in its first row."""
    table = pq.read_table(TOY_DATA / split)
    kind = table.schema.field("image").type
    cell = [{"bytes": file, "path": None}] if pa.types.is_list(kind) else {"bytes": file, "path": None}
    images = pa.array([cell, *table["image"].to_pylist()[1:]], kind)
    (folder / split).parent.mkdir(parents=True)
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", images), folder / split)
    return folder


@pytest.mark.parametrize(
    ("task", "split"),
    [
        ("pope", "POPE/data/test-00000-of-00001.parquet"),
        ("seedbench", "SEED-Bench/data/test-00000-of-00001.parquet"),  # has a list of images
        ("gqa", "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet"),  # has its images apart
    ],
)
def test_a_run_reads_deep_images_of_every_kind_of_column(task: str, split: str, tmp_path: Path) -> None:
    ramp = stored(scaled(65535, np.uint16), "PNG")
    root = with_first_image(tmp_path, split, ramp)
    for other in (TOY_DATA / split).parents[1].glob("*_instructions/*.parquet"):
        shutil.copytree(other.parent, root / other.parent.relative_to(TOY_DATA))
    built = lmms_eval_adapter.build(task, root, limit=None)
    deep = {built.images(request)[0].tobytes() for request in built.requests if len(built.image_hashes(request)) == 1}
    assert open_image(ramp).tobytes() in deep


@pytest.mark.parametrize("task", sorted(set(tasks.TASKS) - {"gqa"}))
def test_images_of_eight_bits_are_those_of_lmms_eval(task: str) -> None:
    built = lmms_eval_adapter.build(task, TOY_DATA, limit=3)
    for request in built.requests[:3]:
        theirs = built.task.doc_to_visual(built.task.test_docs()[request.doc_id])
        assert [image.tobytes() for image in built.images(request)] == [image.tobytes() for image in theirs]


def test_every_door_reads_the_same_picture(tmp_path: Path) -> None:
    """Sixteen bits and turned by EXIF: training, drawing, the page and the check of data, as a run does."""
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate a quarter clockwise to show it upright
    file = stored(scaled(65535, np.uint16), "PNG", exif=turned)
    upright = np.rot90(np.rint(np.floor(RAMP * 65535) / 257), -1)
    np.testing.assert_array_equal(grey(file), upright)
    (tmp_path / "deep.png").write_bytes(file)
    for image in (decode(file, ["a ramp"]).image, read_image(tmp_path / "deep.png")):
        assert image.tobytes() == open_image(file).tobytes()
    assert thumbnail(file, "whole") == thumbnail(stored(open_image(file), "PNG"), "whole")
    assert Batch(0, [{"bytes": file}]).find_broken() == []


@pytest.mark.parametrize("values", [[[-1.0, 0.5]], [[float("nan"), 0.5]], [[0.0, 70000.0]]])
def test_values_without_a_usual_range_are_refused_by_every_door(values: list[list[float]], tmp_path: Path) -> None:
    file = stored(Image.fromarray(np.array(values, np.float32)), "TIFF")
    with pytest.raises(UNREADABLE, match=r"its values, .* are not between 0 \(black\) and .*save it with eight bits"):
        open_image(file)
    (broken,) = Batch(7, [{"bytes": file}]).find_broken()
    assert broken.startswith("row 7 cannot be decoded (its values,")


@pytest.mark.parametrize(("file", "reason"), [(b"", "it is empty"), (b"text", "PIL does not know the format of its 4")])
def test_what_is_no_image_says_so(file: bytes, reason: str) -> None:
    with pytest.raises(UNREADABLE, match=reason):
        open_image(file)


def test_half_an_image_stays_refused_until_the_last_thread_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    both_in, one_out = Barrier(2), Barrier(2)

    def decode(leaves_first: bool) -> bool:
        with refuse_truncated_images():
            both_in.wait(5)
            if not leaves_first:
                one_out.wait(5)
            strict = not ImageFile.LOAD_TRUNCATED_IMAGES
        if leaves_first:
            one_out.wait(5)
        return strict

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(decode, (True, False)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES
