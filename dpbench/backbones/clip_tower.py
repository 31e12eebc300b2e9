"""A CLIP vision tower and the signals methods read from it: hooked at the select layer, SDPA left on.

Shape letters: V views, N patches of a view, C the tower's width, H heads, d one head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpbench.errors import ConfigError
from dpbench.machine import profiler_ranges

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

PROVIDES = frozenset({"cls_attention", "cls_attention[0]", "cls_hidden_VC", "keys_Nd"})


@dataclass(frozen=True, slots=True)
class TowerOutput:
    """What a tower made of V views.

    Attributes:
        hidden_VNC: the select layer, CLS dropped.
        cls_hidden_VC: its CLS rows.
        cls_attention: layer -> (V, H, N) float32, the CLS query's softmax over all keys, CLS column dropped; the layers
            that were asked for.
        keys_VNd: head-mean keys of the patches; None if not asked for.
    """

    hidden_VNC: Tensor
    cls_hidden_VC: Tensor
    cls_attention: Mapping[int, Tensor]
    keys_VNd: Tensor | None


class CLIPTower:
    """A `CLIPVisionModel` read at one layer."""

    def __init__(self, tower: Any, feature_layer: int) -> None:
        config = tower.config
        _check_feature_layer(feature_layer, config.num_hidden_layers)
        self.tower = tower
        self.num_heads: int = config.num_attention_heads
        self.side: int = config.image_size // config.patch_size
        self.image_size: int = config.image_size
        self.patch_size: int = config.patch_size
        self.feature_layer = feature_layer
        self.select_layer: int = feature_layer - 1 if feature_layer > 0 else config.num_hidden_layers + feature_layer
        """The encoder layer whose output is read, counted from 0."""

    def check_settings(self, backbone: Backbone) -> None:
        """Refuse what would make the model read other rows of the tower than `read` returns.

        Raises:
            ConfigError: names the setting.
        """
        config, image_processor = backbone.model.config, backbone.processor.image_processor
        backbone.require_equal("vision_config.model_type", self.tower.config.model_type, "clip_vision_model")
        backbone.require_equal("vision_feature_select_strategy", config.vision_feature_select_strategy, "default")
        for setting, value in (("vision_feature_select_strategy", "default"), ("patch_size", self.patch_size)):
            theirs = getattr(backbone.processor, setting, None)  # earlier checkpoints lack them
            if theirs is not None:
                backbone.require_equal(f"{setting} of the processor", theirs, value)
        backbone.require_equal("size.shortest_edge", image_processor.size["shortest_edge"], self.image_size)
        for side in ("height", "width"):
            backbone.require_equal(f"crop_size.{side}", image_processor.crop_size[side], self.image_size)

    def read(self, pixels: Tensor, needs: frozenset[str]) -> TowerOutput:
        """Run (V, 3, S, S) pixels; sizes other than the tower's own get interpolated position codes."""
        with self._watched(needs) as seen:
            other_size = pixels.shape[-2:] != (self.image_size, self.image_size)
            output = self.tower(pixels, output_hidden_states=True, interpolate_pos_encoding=other_size)
            hidden = output.hidden_states[self.feature_layer]
        with profiler_ranges.marked("signals") if seen else nullcontext():
            rows = {layer: self._cls_rows(seen["q", layer], seen["k", layer]) for layer in self._row_layers(needs)}
            keys = self._heads(seen["k", self.select_layer]).mean(1)[:, 1:] if "keys_Nd" in needs else None
        return TowerOutput(hidden[:, 1:], hidden[:, 0], rows, keys)

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

    def _row_layers(self, needs: frozenset[str]) -> tuple[int, ...]:
        """Return the layers whose CLS rows are asked for."""
        layers = {"cls_attention[0]": 0, "cls_attention": self.select_layer}
        return tuple(dict.fromkeys(layer for name, layer in layers.items() if name in needs))

    @contextmanager
    def _watched(self, needs: frozenset[str]) -> Iterator[dict[tuple[str, int], Tensor]]:
        """Keep the queries and keys that are needed, as the layers' own projections compute them anyway."""
        rows = self._row_layers(needs)
        wanted = {("q", layer) for layer in rows} | {("k", layer) for layer in rows}
        wanted |= {("k", self.select_layer)} if "keys_Nd" in needs else set()
        seen: dict[tuple[str, int], Tensor] = {}
        handles = []
        for name, layer in wanted:
            module = getattr(self.tower.encoder.layers[layer].self_attn, f"{name}_proj")
            handles.append(module.register_forward_hook(_keep(seen, (name, layer))))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _heads(self, projected: Tensor) -> Tensor:
        """Split (V, 1+N, C) into (V, H, 1+N, d)."""
        views, length, width = projected.shape
        return projected.view(views, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _cls_rows(self, queries: Tensor, keys: Tensor) -> Tensor:
        queries, keys = self._heads(queries)[:, :, :1].float(), self._heads(keys).float()
        scores = queries @ keys.transpose(-1, -2) / float(keys.shape[-1] ** 0.5)
        return scores.softmax(-1)[:, :, 0, 1:]


def _check_feature_layer(layer: Any, num_layers: int) -> None:
    """Refuse several layers, the patch embeddings, and layers that the tower does not have.

    Raises:
        ConfigError: names the setting and its value.
    """
    if not isinstance(layer, int) or layer == 0 or not -num_layers <= layer <= num_layers:
        raise ConfigError(
            f"vision_feature_layer = {layer!r}: dpbench reads the output of one of the tower's {num_layers} layers, "
            "counted from 1, or from -1 backwards; give other weights"
        )


def _keep(seen: dict[tuple[str, int], Tensor], name: tuple[str, int]) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        seen[name] = output.detach()

    return hook
