"""Load the backbone that a manifest describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import backbones
from dpbench.manifest.schema import Manifest

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone


def load_backbone(manifest: Manifest, device: str) -> Backbone:
    """Load the backbone a manifest describes.

    Raises:
        MissingError: the weights are missing.
    """
    entry, protocol = manifest.backbone, manifest.resolved_protocol()
    return backbones.load(
        entry.name,
        weights=entry.weights,
        revision=entry.revision,
        device=device,
        dtype=protocol.dtype or "float32",
        attention=protocol.attention,
        device_map=entry.device_map,
        quantize=entry.quantize,
        prompt=protocol.prompt,
        image_aspect=protocol.image_aspect,
        grids=protocol.grids,
        pixels=(protocol.min_pixels, protocol.max_pixels),
    )
