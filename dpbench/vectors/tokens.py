"""Vectors of a decision before the LLM: which rows a method makes of an image's visual tokens, in which order.

Shape letters: B images or views, N visual tokens, K rows kept, D the width of the rows, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from dpbench.errors import ConfigError, MissingError
from dpbench.method import Method, Reduction, VisualTokens
from dpbench.pruning import Rule, reduce_image
from dpbench.vectors.vector import Vector, configured, differences

HAS_CLS = {"llava": True, "qwen": False}
"""Whether a variant's tower has a CLS token."""
LAYER = 0
"""The select layer, whose number means nothing here."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image, and what upstream makes of it.

    Attributes:
        visual: what the method reads.
        num_views: how many views it is cut into.
        keep: budget over all of them.
        indices_K: which token each row is, -1 for a row that is no single token.
        rows_KD: the rows, bit for bit.
    """

    visual: VisualTokens
    num_views: int
    keep: int
    indices_K: Tensor
    rows_KD: Tensor


def check_tokens(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce each image, and compare order and content of its rows."""
    made = configured(method, vector)
    for number, image in enumerate(_images(vector)):
        made.needs(frozenset(_signals(image.visual)))
        rule, num = Rule(keep=image.keep), len(image.visual)
        reduction = reduce_image(made, image.visual, rule, num_read=num, max_views=image.num_views)
        yield from differences(f"rows of image {number}", reduction.indices_K, image.indices_K)
        rows = _rows(image.visual, reduction)
        if rows.shape != image.rows_KD.shape or not torch.equal(rows, image.rows_KD):
            yield f"rows of image {number} do not hold what the vector's hold"


def _images(vector: Vector) -> Iterator[Image]:
    variant = str(vector["variant"])
    if variant not in HAS_CLS:
        raise ConfigError(f"no vector of variant {variant!r} can be run; known: {', '.join(HAS_CLS)}")
    if "features" in vector:
        return _projected(vector, cls=HAS_CLS[variant])
    if "hidden" in vector:
        return _tower_views(vector) if HAS_CLS[variant] else iter([_whole(vector)])
    raise MissingError("the vector has neither 'features' (behind the projector) nor 'hidden' (of the tower)")
