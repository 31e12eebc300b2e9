"""Small versions of images as a page embeds them, cut or padded as the vision tower read them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import ImageOps

from dpbench import backbones
from dpbench.tasks.data.image_file import open_image

THUMBNAIL = 160
"""Longest side of an embedded image in pixels."""
_CLIP_MEAN = (122, 116, 104)
"""CLIP's mean colour, with which LLaVA-1.5 pads."""


def fit(cell: Mapping[str, Any]) -> str:
    """Return how a cell's images were fitted to the tower; see `thumbnail`."""
    family = backbones.find(cell["backbone"])
    if family.tiles or family.native_resolution:
        return "stretch" if family.tiles else "whole"
    return "pad" if cell["image_aspect"] == "pad" else "centre"


def thumbnail(data: bytes, fit: str) -> str:
    """Return a small version of an image, cut to what the tower sees, as a data URI.

    Args:
        data: an image file.
        fit: "centre" crops to the middle square, "pad" adds bars of the mean colour, "stretch" resizes to a square,
            "whole" changes nothing.
    """
    image = open_image(data)
    side = min(image.size)
    if fit == "centre":
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif fit == "pad":
        image = ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), color=_CLIP_MEAN)
    elif fit == "stretch":
        image = image.resize((THUMBNAIL, THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=72, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
