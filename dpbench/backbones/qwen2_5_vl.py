"""Qwen2.5-VL: native resolution, a windowed tower without CLS, 2x2 patches merged into a token, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from dpbench.backbones.base import Backbone, Features, Pixels
from dpbench.errors import ImageError
from dpbench.machine import profiler_ranges

MODEL, PROCESSOR = Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
LONGEST = 200
"""The longer over the shorter side of an image, at most; the processor's own limit."""
_QUERY_BLOCK = 1024
"""Queries whose attention rows exist at one time, so that a large image does not need a full attention matrix."""


class Qwen25VL(Backbone):
    """A `Qwen2_5_VLForConditionalGeneration` with its processor; one position per merged token."""

    provides = frozenset({"received_attention_N", "keys_Nd"})
    mrope = True

    def __init__(self, name: str, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
        super().__init__(name, model, processor)
        self.tower = self.core.visual
        self.merge: int = model.config.vision_config.spatial_merge_size

    def check_image(self, image: Image) -> None:
        """Refuse an image that is too large, or longer than the processor reads."""
        super().check_image(image)
        if max(image.size) > LONGEST * min(image.size):
            raise ImageError(
                f"an image of {image.width} x {image.height} pixels is too long for Qwen2.5-VL, which reads sides of "
                f"up to {LONGEST} : 1; crop it"
            )

    def grid(self, image: Image) -> tuple[int, int]:
        """Return the rows and columns of tokens at the image's own resolution, within the pixel bounds."""
        step, bounds = self.tower.patch_size * self.merge, self.processor.image_processor.size
        self.check_image(image)
        height, width = smart_resize(
            image.height, image.width, step, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
        )
        return height // step, width // step

    def preprocess(self, images: Sequence[Image], grids: Sequence[tuple[int, int]] | None = None) -> list[Pixels]:
        """Cut images into patches at their own resolution, within the pixel bounds.

        Raises:
            ImageError: as `check_image`.
        """
        for image in images:
            self.check_image(image)
        settings, step = {}, self.tower.patch_size * self.merge
        if grids is not None:
            images = [
                image.convert("RGB").resize((width * step, height * step), self.resample)
                for image, (height, width) in zip(images, grids, strict=True)
            ]
            settings = {"do_resize": False}
        inputs = self.processor.image_processor(list(images), return_tensors="pt", **settings)
        patch_grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(patch_grids.prod(-1).tolist())
        return [
            Pixels(values, len(values) // self.merge**2, tuple(grid.tolist()))
            for values, grid in zip(patches, patch_grids, strict=True)
        ]

    def positions(self, ids_L: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return M-RoPE's time, row and column of every position, (3, L)."""
        grids = torch.tensor(list(sizes), dtype=torch.int64).view(-1, 3)
        kinds = (ids_L[None] == self.image_id).int()
        positions, _ = self.core.get_rope_index(ids_L[None], mm_token_type_ids=kinds, image_grid_thw=grids)
        return positions[:, 0]  # type: ignore[no-any-return]

    def check_settings(self) -> None:
        """Refuse a processor that cuts images into other patches than the tower reads."""
        theirs, config = self.processor.image_processor, self.tower.config
        self.require_equal("patch_size of the processor", theirs.patch_size, config.patch_size)
        self.require_equal("merge_size of the processor", theirs.merge_size, config.spatial_merge_size)
        self.require_equal(
            "temporal_patch_size of the processor", theirs.temporal_patch_size, config.temporal_patch_size
        )
        super().check_settings()

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """Set how few and how many pixels an image is resized to."""
        size = self.processor.image_processor.size
        least = least if least is not None else size["shortest_edge"]
        most = most if most is not None else size["longest_edge"]
        self.processor.image_processor.size = {"shortest_edge": least, "longest_edge": most}

    def position_ids(self, positions_PBL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return (4, B, L): in front of M-RoPE's axes text positions without gaps, which only masks are made from."""
        if mask_BL is None:
            text = torch.arange(positions_PBL.shape[-1], device=positions_PBL.device).expand(positions_PBL.shape[1:])
        else:
            text = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        return torch.cat([text[None], positions_PBL])

    @torch.no_grad()
    def encode(self, pixels: Sequence[Pixels], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and merger over I images at once; the tower's attention stays SDPA."""
        grids = torch.tensor([image.size for image in pixels], device=self.device)
        patches = torch.cat([image.values for image in pixels]).to(self.device, self.dtype)
        with self._watched(needs) as seen:
            output = self.tower(patches, grid_thw=grids)
        sizes = [image.rows for image in pixels]
        order = self._raster_order(grids)
        hidden = output.last_hidden_state.unflatten(0, (-1, self.merge**2)).flatten(1)[order].split(sizes)
        rows, columns = zip(*(self._grid(image.size) for image in pixels), strict=True)
        received: Sequence[Tensor | None] = [None] * len(sizes)
        keys: Sequence[Tensor | None] = [None] * len(sizes)
        if seen:
            with profiler_ranges.marked("signals"):
                queries_LHd, keys_LHd = self._rotated(seen)
                if "received_attention_N" in needs:
                    lengths = [size * self.merge**2 for size in sizes]
                    received = self._received(queries_LHd, keys_LHd, lengths)[order].split(sizes)
                if "keys_Nd" in needs:
                    keys = keys_LHd.mean(1).unflatten(0, (-1, self.merge**2)).mean(1)[order].split(sizes)
        return [
            Features(
                embeds_ND=embeds,
                hidden_NC=hidden[i],
                view_N=torch.zeros_like(rows[i]),
                row_N=rows[i],
                col_N=columns[i],
                read_N=torch.ones(sizes[i], dtype=torch.bool, device=embeds.device),
                slot_N=torch.arange(sizes[i]),
                received_attention_N=received[i],
                keys_Nd=keys[i],
            )
            for i, embeds in enumerate(output.pooler_output.split(sizes))
        ]

    @torch.no_grad()
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Merge rows of 2x2 concatenated patches from tower space, (K, D)."""
        return self.tower.merger(hidden_KC.unflatten(-1, (self.merge**2, -1)).flatten(0, 1))  # type: ignore[no-any-return]

    def _grid(self, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return row and column of every token of an image, in raster order."""
        height, width = size[1] // self.merge, size[2] // self.merge
        rows, columns = torch.arange(height, device=self.device), torch.arange(width, device=self.device)
        return rows.repeat_interleave(width), columns.repeat(height)

    def _raster_order(self, grids: Tensor) -> Tensor:
        """Return which token in the tower's window order each token in raster order is."""
        tower = self.tower
        window, _ = get_vision_window_index(grids, self.merge, tower.window_size, tower.patch_size)
        order: Tensor = window.to(self.device).argsort()
        return order

    @contextmanager
    def _watched(self, needs: frozenset[str]) -> Iterator[dict[str, Any]]:
        """Keep queries, keys and angles of the last full-attention block, as it computes them anyway."""
        seen: dict[str, Any] = {}
        if not needs & {"received_attention_N", "keys_Nd"}:
            yield seen
            return
        attention = self.tower.blocks[self.tower.fullatt_block_indexes[-1]].attn
        handles = [
            attention.qkv.register_forward_hook(_keep_output(seen)),
            attention.register_forward_pre_hook(_keep_angles(seen), with_kwargs=True),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _rotated(self, seen: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the watched block's queries and keys after RoPE, patches in the tower's window order, (L, H, d)."""
        attention = self.tower.blocks[self.tower.fullatt_block_indexes[-1]].attn
        queries, keys, _ = seen["qkv"].unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
        return apply_rotary_pos_emb_vision(queries, keys, *seen["angles"])  # type: ignore[no-any-return]

    def _received(self, queries_LHd: Tensor, keys_LHd: Tensor, lengths: list[int]) -> Tensor:
        """Return the attention each token receives, mean over heads and queries of its own image and over its patches.

        In the tower's window order, float32, (sum of N,).
        """
        columns = [
            column_mean(q.transpose(0, 1).float(), k.transpose(0, 1).float())
            for q, k in zip(queries_LHd.split(lengths), keys_LHd.split(lengths), strict=True)
        ]
        return torch.cat(columns).view(-1, self.merge**2).mean(-1)


def column_mean(queries_HLd: Tensor, keys_HLd: Tensor) -> Tensor:
    """Return the mean over heads and queries of the softmax attention each key receives, (L,)."""
    scale, num_heads, length = keys_HLd.shape[-1] ** -0.5, *queries_HLd.shape[:2]
    total = queries_HLd.new_zeros(length)
    for block in queries_HLd.split(_QUERY_BLOCK, dim=1):
        total += (block @ keys_HLd.transpose(-1, -2) * scale).softmax(-1).sum((0, 1))
    return total / (num_heads * length)


def _keep_output(seen: dict[str, Any]) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        seen["qkv"] = output.detach()

    return hook


def _keep_angles(seen: dict[str, Any]) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["angles"] = kwargs["position_embeddings"]

    return hook
