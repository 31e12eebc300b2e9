"""A CLIP vision tower and the signals methods read from it: hooked at the select layer, SDPA left on.

Shape letters: V views, N patches of a view, C the tower's width, H heads, d one head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROVIDES = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})


@dataclass(frozen=True, slots=True)
class TowerOutput:
    """What a tower made of V views.

    Attributes:
        hidden_VNC: the select layer, CLS dropped.
        cls_hidden_VC: its CLS rows.
        cls_attention_VHN: the CLS query's softmax over all keys, CLS column dropped, float32; None if not asked for.
        keys_VNd: head-mean keys of the patches; None if not asked for.
    """

    hidden_VNC: Tensor
    cls_hidden_VC: Tensor
    cls_attention_VHN: Tensor | None
    keys_VNd: Tensor | None


class CLIPTower:
    """A `CLIPVisionModel` read at one layer."""

    def __init__(self, tower: Any, feature_layer: int) -> None:
        config = tower.config
        self.tower = tower
        self.num_heads: int = config.num_attention_heads
        self.side: int = config.image_size // config.patch_size
        self.image_size: int = config.image_size
        self.patch_size: int = config.patch_size
        self.feature_layer = feature_layer
        self.select_layer: int = config.num_hidden_layers + feature_layer
        """The encoder layer whose output is read, counted from 0."""

    def read(self, pixels: Tensor, needs: frozenset[str]) -> TowerOutput:
        """Run (V, 3, S, S) pixels; sizes other than the tower's own get interpolated position codes."""
        with self._watched(needs) as seen:
            other_size = pixels.shape[-2:] != (self.image_size, self.image_size)
            output = self.tower(pixels, output_hidden_states=True, interpolate_pos_encoding=other_size)
            hidden = output.hidden_states[self.feature_layer]
        return TowerOutput(
            hidden[:, 1:],
            hidden[:, 0],
            self._cls_rows(seen) if "cls_attention" in needs else None,
            self._heads(seen["k"]).mean(1)[:, 1:] if "keys_Nd" in needs else None,
        )

    def places(self, pixels: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return view, row and column of every patch of (V, 3, S, S) pixels, views one after another."""
        views, height, width = len(pixels), *(side // self.patch_size for side in pixels.shape[-2:])
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        return {
            "view_N": torch.arange(views, device=device).repeat_interleave(height * width),
            "row_N": rows.repeat_interleave(width).repeat(views),
            "col_N": columns.repeat(height * views),
        }

    def pixel_size(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        """Return width and height in pixels of a grid of patches."""
        return grid_hw[1] * self.patch_size, grid_hw[0] * self.patch_size

    @contextmanager
    def _watched(self, needs: frozenset[str]) -> Iterator[dict[str, Tensor]]:
        """Keep the select layer's queries and keys, as its own projections compute them anyway."""
        attention = self.tower.encoder.layers[self.select_layer].self_attn
        wanted = {"q": attention.q_proj} if "cls_attention" in needs else {}
        wanted |= {"k": attention.k_proj} if needs & {"cls_attention", "keys_Nd"} else {}
        seen: dict[str, Tensor] = {}
        handles = [module.register_forward_hook(_keep(seen, name)) for name, module in wanted.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _heads(self, projected: Tensor) -> Tensor:
        """Split (V, 1+N, C) into (V, H, 1+N, d)."""
        views, length, width = projected.shape
        return projected.view(views, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _cls_rows(self, seen: dict[str, Tensor]) -> Tensor:
        queries, keys = self._heads(seen["q"])[:, :, :1].float(), self._heads(seen["k"]).float()
        scores = queries @ keys.transpose(-1, -2) / float(keys.shape[-1] ** 0.5)
        return scores.softmax(-1)[:, :, 0, 1:]


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        seen[name] = output.detach()

    return hook
