"""An LRU cache of encoded images, limited in bytes and shared by questions and cells.

Features stay on the device that computed them, so that using them again copies nothing. The cache is emptied before a
batch is halved after an out-of-memory error.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from dpbench.backbones.base import Features

Key = tuple[str, tuple[int, int] | None]
"""Hash of an image's file, and the grid of visual tokens it was resized to; None at its own size."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image after processor, tower and projector: all that a later question about it needs.

    Attributes:
        features: what tower and projector made of it.
        rows: number of its placeholders in a prompt.
        size: `Pixels.size`.
    """

    features: Features
    rows: int
    size: tuple[int, ...]


class FeatureCache:
    """Encoded images by file and grid; the least recently used are dropped first.

    Args:
        capacity: bytes; 0 keeps nothing.

    Attributes:
        num_bytes: held now.
        counts: of the images that samples asked for, those found ("hits") and those "encoded", for the run's summary.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_bytes = 0
        self.counts = {"hits": 0, "encoded": 0}
        self._kept: OrderedDict[Key, EncodedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> EncodedImage | None:
        """Return an image's features and mark them as used, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Key, seen: EncodedImage) -> None:
        """Keep an image's features, dropping others for them; what is larger than the whole cache is not kept."""
        self._drop(key)
        size = features_bytes(seen.features)
        if size > self.capacity:
            return
        while self.num_bytes + size > self.capacity:
            self._drop(next(iter(self._kept)))
        self._kept[key] = seen
        self.num_bytes += size

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self.num_bytes = 0

    def _drop(self, key: Key) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self.num_bytes -= features_bytes(dropped.features)


def features_bytes(features: Features) -> int:
    """Return how many bytes an image's features take."""
    return sum(tensor.nbytes for tensor in _tensors(features))


def compact(features: Features) -> Features:
    """Copy what is a view of the whole batch's tensor, which would stay in memory as long as one image of it."""
    copies = {field.name: _copy_if_view(getattr(features, field.name)) for field in fields(Features)}
    return replace(features, **copies)


def _copy_if_view(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy_if_view(item) for name, item in value.items()}
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def _tensors(features: Features) -> list[Tensor]:
    values = [getattr(features, field.name) for field in fields(Features)]
    values += list(features.cls_attention.values())
    return [value for value in values if isinstance(value, Tensor)]
