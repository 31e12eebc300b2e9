"""Open image files as eight-bit RGB. Running, training, drawing and checking data all read images through here.

Shape letters: H and W, pixels of the image.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from dpbench.machine.image_memory import explain_too_large

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What `open_image` raises for a file that is not a complete image; Pillow calls a broken PNG a SyntaxError."""
_RANGES = {"I": (255, 2**16 - 1, 2**31 - 1, 2**32 - 1), "F": (1, 255, 2**16 - 1)}
"""What white may be in a type that is wider than most images in it, or that has no largest value."""
_UNSIGNED = 1
"""TIFF's sample format of whole numbers without sign."""


def open_image(file: bytes | Path) -> Image.Image:
    """Return an image file as RGB, rotated as EXIF says; of an animation the first frame, of transparency the colour.

    A grey image of more than eight bits is scaled by the range of its type, so that 65535 of 16 bits is white. Types
    of 32 bits leave white open: it is the smallest of the usual ranges that holds all values (of whole numbers 8, 16,
    31 or 32 bits; of fractions 0-1, 8 or 16 bits).

    Differs from Pillow's `convert`: that clips such an image at 255.

    Raises:
        OSError: it is empty, truncated, or not an image that Pillow can read.
        SyntaxError: it is a broken PNG.
        ValueError: a value is negative, not a number, or beyond the usual ranges.
        DecompressionBombError: it has more pixels than are read.
    """
    with refuse_truncated_images(), _open(file) as opened:
        if reason := explain_too_large(opened.size):
            raise Image.DecompressionBombError(reason)
        opened.load()
        shallow = _eight_bits(opened)
        if shallow is not opened:
            shallow.getexif().update(opened.getexif())
        return ImageOps.exif_transpose(shallow).convert("RGB")


def _open(file: bytes | Path) -> Image.Image:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if not size:
        raise OSError("it is empty (0 bytes)")
    try:
        return Image.open(BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError:  # its own message holds a memory address
        raise UnidentifiedImageError(f"PIL does not know the format of its {size:,} bytes") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of eight bits a band: the same one if it is."""
    if image.mode == "La":  # grey with premultiplied alpha, which Pillow converts to LA only
        return image.convert("LA")
    bits, is_signed = _find_depth(image)
    if not image.mode.startswith(("I", "F")) and not (image.mode == "L" and is_signed):
        return image
    stored = np.asarray(image)
    if image.mode == "L":
        stored = stored.view(np.int8)  # Pillow reads signed values of 8 bits as unsigned ones
    if image.mode == "I" and not is_signed:
        stored = stored.view(np.uint32)  # Pillow reads unsigned values of 32 bits as signed ones
    values_HW = stored.astype(np.float64)
    white = _find_white(values_HW, image.mode, bits, is_signed=is_signed)
    if not (values_HW.min(initial=0) >= 0 and values_HW.max(initial=0) <= white):  # neither is true of NaN
        raise ValueError(
            f"its values, {values_HW.min():g} to {values_HW.max():g}, are not between 0 (black) and {white:,} (white); "
            "save it with eight bits"
        )
    grey_HW = np.rint(values_HW * (255 / white)).astype(np.uint8)
    is_negative = getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0  # Pillow heeds it up to 8 bits
    return Image.fromarray(255 - grey_HW if is_negative else grey_HW)


def _find_depth(image: Image.Image) -> tuple[int, bool]:
    """Return how many bits each value of a deep image's file has, and whether it may be negative."""
    if tags := getattr(image, "tag_v2", None):
        return tags.get(BITSPERSAMPLE, (1,))[0], tags.get(SAMPLEFORMAT, (_UNSIGNED,))[0] != _UNSIGNED
    if not image.mode.startswith(("I", "F")):
        return 8, False
    is_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    return (16, False) if is_16_bits else (32, True)


def _find_white(values_HW: NDArray[np.float64], mode: str, bits: int, *, is_signed: bool) -> int:
    """Return the value of white, by the type's range; where that says nothing, by the values."""
    if bits < 32:
        return int(2 ** (bits - is_signed)) - 1
    return next((most for most in _RANGES[mode] if values_HW.max(initial=0) <= most), _RANGES[mode][-1])


class _TruncatedImagesRefused:
    """Pillow's setting for truncated images, a global: the first thread in sets it, the last one out restores it."""

    def __init__(self) -> None:
        self.lock, self.inside, self.lenient = Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False  # Pillow has no other switch, and lmms-eval sets it to True
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.lenient  # as it was before


_TRUNCATED_IMAGES_REFUSED = _TruncatedImagesRefused()


def refuse_truncated_images() -> _TruncatedImagesRefused:
    """Make Pillow refuse truncated images; importing lmms-eval makes it fill the missing part with grey."""
    return _TRUNCATED_IMAGES_REFUSED
