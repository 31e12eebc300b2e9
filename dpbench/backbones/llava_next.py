"""LLaVA-NeXT: a base view and AnyRes tiles through a CLIP tower, unpadded, each row of tiles ended by a newline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from dpbench.backbones import clip_tower
from dpbench.backbones.base import Backbone, Features, Pixels
from dpbench.backbones.clip_tower import CLIPTower
from dpbench.errors import ConfigError

MODEL, PROCESSOR = LlavaNextForConditionalGeneration, LlavaNextProcessor


class LlavaNext(Backbone):
    """A `LlavaNextForConditionalGeneration` with its processor."""

    provides = clip_tower.PROVIDES

    def __init__(self, name: str, model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor) -> None:
        super().__init__(name, model, processor)
        self.tower = CLIPTower(self.core.vision_tower, model.config.vision_feature_layer)
        self.pinpoints = [list(pair) for pair in model.config.image_grid_pinpoints]
        self._check_pinpoints()
        self.max_views = 1 + max(height * width for height, width in self.pinpoints) // self.tower.image_size**2
        self.layout = lru_cache(maxsize=256)(self._layout)

    def check_settings(self) -> None:
        """Refuse settings under which the tower would be read in another way."""
        self.tower.check_settings(self)
        theirs = [list(pair) for pair in self.processor.image_processor.image_grid_pinpoints]
        self.require_equal("image_grid_pinpoints of the processor", theirs, self.pinpoints)
        super().check_settings()

    def _check_pinpoints(self) -> None:
        """Refuse sizes that the tower's views do not fill.

        Raises:
            ConfigError: names them.
        """
        side = self.tower.image_size
        if not self.pinpoints or any(size <= 0 or size % side for pair in self.pinpoints for size in pair):
            raise ConfigError(
                f"--backbone {self.name}: its configuration has image_grid_pinpoints = {self.pinpoints}, which must be "
                f"sizes of whole views of {side} pixels; give other weights"
            )

    def set_grids(self, whose: str) -> None:
        """Set who decides between two grids that fit an image equally well.

        Args:
            whose: "transformers" takes the wide one, as first in the configuration, whose pairs it reads as height and
                width; "llava" reads the same pairs as width and height and takes the tall one.
        """
        if whose == "llava":
            tall_first = [[width, height] for height, width in self.model.config.image_grid_pinpoints]
            self.model.config.image_grid_pinpoints = tall_first
            self.processor.image_processor.image_grid_pinpoints = tall_first
            self.pinpoints = tall_first
            self.layout.cache_clear()

    def grid(self, image: Image) -> tuple[int, int]:
        """Return the rows and columns of the base view, the same for every image."""
        return self.tower.side, self.tower.side

    def preprocess(self, images: Sequence[Image], grids: Sequence[tuple[int, int]] | None = None) -> list[Pixels]:
        """Cut images into views, with one placeholder a row that the LLM reads."""
        for image in images:
            self.check_image(image)
        if grids is not None:
            return self._base_views(images, grids)
        inputs = self.processor.image_processor(list(images), return_tensors="pt")
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        return [
            Pixels(values[: self.num_views(size)], len(self.layout(size)), size)
            for values, size in zip(inputs["pixel_values"], sizes, strict=True)
        ]

    def _base_views(self, images: Sequence[Image], grids: Sequence[tuple[int, int]]) -> list[Pixels]:
        """Preprocess each image as a base view of another size, without tiles; one newline follows it."""
        theirs = self.processor.image_processor
        settings = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        values = {setting: getattr(theirs, setting) for setting in settings}
        plain = CLIPImageProcessor(do_resize=False, do_center_crop=False, **values)
        sizes = map(self.tower.pixel_size, grids)
        views = [image.convert("RGB").resize(size, self.resample) for image, size in zip(images, sizes, strict=True)]
        return [
            Pixels(plain(view, return_tensors="pt")["pixel_values"], height * width + 1)
            for view, (height, width) in zip(views, grids, strict=True)
        ]

    def num_views(self, size_hw: tuple[int, ...]) -> int:
        """Return into how many views an image of this size is cut, the base view included."""
        return image_size_to_num_patches(size_hw, self.pinpoints, self.tower.image_size)  # type: ignore[no-any-return]

    def _layout(self, size_hw: tuple[int, ...]) -> Tensor:
        """Return what fills each placeholder of an image: a token's number in tower order, or -1 for a newline.

        transformers' own packing is run on the tokens' numbers.
        """
        num_views, size = self.num_views(size_hw), self.tower.side**2
        numbers = torch.arange(num_views * size, dtype=torch.float64).view(num_views, size, 1)
        newline = torch.full((1,), -1.0, dtype=torch.float64)
        (packed,), _ = self.core.pack_image_features([numbers], [size_hw], "default", image_newline=newline)
        return packed[:, 0].long()  # type: ignore[no-any-return]

    def slots(self, size_hw: tuple[int, ...]) -> Tensor:
        """Return which placeholder each token in tower order fills, -1 where unpadding drops it."""
        layout = self.layout(size_hw)
        slots = torch.full((self.num_views(size_hw) * self.tower.side**2,), -1)
        read = layout >= 0
        slots[layout[read]] = torch.arange(len(layout))[read]
        return slots

    @torch.no_grad()
    def encode(self, pixels: Sequence[Pixels], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and projector over all views of I images at once; the tower's attention stays SDPA."""
        counts = [len(image.values) for image in pixels]
        seen = self.tower.read(torch.cat([image.values for image in pixels]).to(self.device, self.dtype), needs)
        embeds = self.core.multi_modal_projector(seen.hidden_VNC).split(counts)
        hidden, cls_hidden = seen.hidden_VNC.split(counts), seen.cls_hidden_VC.split(counts)
        rows = {layer: rows_VHN.split(counts) for layer, rows_VHN in seen.cls_attention.items()}
        keys = seen.keys_VNd.split(counts) if seen.keys_VNd is not None else None
        found = []
        for i, image in enumerate(pixels):
            slots = self.slots(image.size) if image.size else torch.arange(embeds[i].shape[1])
            found.append(
                Features(
                    embeds_ND=embeds[i].flatten(0, 1),
                    hidden_NC=hidden[i].flatten(0, 1),
                    **self.tower.places(image.values, self.device),
                    read_N=(slots >= 0).to(self.device),
                    slot_N=slots,
                    newline_D=self.core.image_newline,
                    num_newlines=image.rows - int((slots >= 0).sum()),
                    cls_hidden_VC=cls_hidden[i],
                    cls_attention={layer: split[i].transpose(0, 1).flatten(1) for layer, split in rows.items()},
                    keys_Nd=None if keys is None else keys[i].flatten(0, 1),
                )
            )
        return found

    @torch.no_grad()
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Project rows from tower space, (K, D)."""
        return self.core.multi_modal_projector(hidden_KC)  # type: ignore[no-any-return]
