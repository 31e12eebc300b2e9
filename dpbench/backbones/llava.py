"""LLaVA-1.5 and every model of its form, `toy-llava` among them: CLIP tower, MLP projector, Llama decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from PIL.Image import fromarray as from_array
from PIL.Image import new as new_image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaImageProcessorPil, LlavaProcessor

from dpbench.backbones import clip_tower
from dpbench.backbones.base import Backbone, Features, Pixels
from dpbench.backbones.clip_tower import CLIPTower

MODEL, PROCESSOR = LlavaForConditionalGeneration, LlavaProcessor


class Llava(Backbone):
    """A `LlavaForConditionalGeneration` with its processor."""

    num_visual: int
    provides = clip_tower.PROVIDES

    def __init__(self, name: str, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        super().__init__(name, model, processor)
        self.tower = CLIPTower(self.core.vision_tower, model.config.vision_feature_layer)
        self.num_visual = self.tower.side**2
        self.pads = False
        self._values_of_levels: np.ndarray | None = None

    def grid(self, image: Image) -> tuple[int, int]:
        """Return the tower's rows and columns, the same for every image."""
        return self.tower.side, self.tower.side

    def preprocess(self, images: Sequence[Image], grids: Sequence[tuple[int, int]] | None = None) -> list[Pixels]:
        """Resize images to the tower's square, padded or cropped as `set_image_aspect` says; by default cropped."""
        for image in images:
            self.check_image(image)
        if grids is None and not self.pads:
            values = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        else:
            side = self.tower.image_size
            sizes = [(side, side)] * len(images) if grids is None else map(self.tower.pixel_size, grids)
            values = [self._read_grey_levels(image, size) for image, size in zip(images, sizes, strict=True)]
        counts = [height * width for height, width in grids or [self.grid(image) for image in images]]
        return [Pixels(*image) for image in zip(values, counts, strict=True)]

    def _read_grey_levels(self, image: Image, size: tuple[int, int]) -> Tensor:
        """Return an image's square, resized, as the tower reads it, (3, height, width)."""
        resized = self._square(image.convert("RGB")).resize(size, self.resample)
        if self._values_of_levels is None:
            self._values_of_levels = values_of_levels(self.processor.image_processor)
        levels = np.asarray(resized)
        read = zip(self._values_of_levels, levels.transpose(2, 0, 1), strict=True)
        return torch.from_numpy(np.stack([values.take(channel) for values, channel in read]))

    def enlarged_size(self, image: Image) -> tuple[int, int]:
        """Return the padded square, or what the processor crops: the image with its shorter side as long as it asks."""
        edge = self.processor.image_processor.size.shortest_edge
        if self.pads:
            return max(image.size), max(image.size)
        scale = edge / min(image.size) if edge else 0
        return round(image.width * scale), round(image.height * scale)

    def check_settings(self) -> None:
        """Refuse settings under which the tower would be read in another way."""
        self.tower.check_settings(self)
        for setting in ("do_resize", "do_center_crop"):
            self.require_equal(setting, getattr(self.processor.image_processor, setting), True)
        super().check_settings()

    def set_image_aspect(self, aspect: str) -> None:
        """Set how an image that is not square becomes square.

        Args:
            aspect: "crop" is what the hub's processor does: resize the shorter side, cut off the rest. "pad" is what
                LLaVA-1.5 was trained and evaluated with: a square of the mean colour around the image.
        """
        self.pads = aspect == "pad"
        if self.pads:
            # Pillow's resizing gives the tensors of LLaVA's code bit for bit; torchvision's differs by a grey level.
            settings = self.processor.image_processor.to_dict()
            self.processor.image_processor = LlavaImageProcessorPil(**{**settings, "do_pad": True})
        self._values_of_levels = None

    def _square(self, image: Image) -> Image:
        if self.pads:
            return pad_to_square(image, self.processor.image_processor.image_mean)
        return crop_centre_square(image)

    @torch.no_grad()
    def encode(self, pixels: Sequence[Pixels], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and projector over I images at once; the tower's attention stays SDPA."""
        batch = torch.stack([image.values for image in pixels]).to(self.device, self.dtype)
        seen = self.tower.read(batch, needs)
        embeds = self.core.multi_modal_projector(seen.hidden_VNC)
        num = embeds.shape[1]
        shared: dict[str, Any] = {
            **self.tower.places(batch[:1], embeds.device),
            "read_N": torch.ones(num, dtype=torch.bool, device=embeds.device),
            "slot_N": torch.arange(num),
        }
        keys = seen.keys_VNd
        return [
            Features(
                embeds_ND=embeds[i],
                hidden_NC=seen.hidden_VNC[i],
                cls_hidden_VC=seen.cls_hidden_VC[i : i + 1],
                cls_attention={layer: rows_VHN[i] for layer, rows_VHN in seen.cls_attention.items()},
                keys_Nd=None if keys is None else keys[i],
                **shared,
            )
            for i in range(len(batch))
        ]

    @torch.no_grad()
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Project rows from tower space, (K, D)."""
        return self.core.multi_modal_projector(hidden_KC)  # type: ignore[no-any-return]


def crop_centre_square(image: Image) -> Image:
    """Return the middle of an image, as wide as high."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def pad_to_square(image: Image, mean: Sequence[float]) -> Image:
    """Return an image in the middle of a square of the mean colour, whose side is the image's longer one.

    Args:
        image: RGB.
        mean: the processor's `image_mean`, 0-1 per channel; LLaVA rounds the colour down.
    """
    side = max(image.size)
    square = new_image("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def values_of_levels(image_processor: Any) -> np.ndarray:
    """Return what a processor makes of each of the 256 grey levels, float32 (3, 256).

    To look a picture's levels up there gives the processor's own values, without its several passes over the picture.
    """
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = from_array(np.stack([levels] * 3, -1))
    settings = {"do_resize": False, "do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
    if not hasattr(image_processor, "do_pad"):
        del settings["do_pad"]
    values = image_processor([picture], **settings)["pixel_values"]
    return values[0].reshape(3, 256).numpy()  # type: ignore[no-any-return]
