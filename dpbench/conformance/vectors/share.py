"""Vectors of methods that keep a fixed share of the projected tokens, whatever the budget."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dpbench.conformance.vectors.tokens import square_views
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decision import Rule, reduce_image
from dpbench.method import Method


def check_share(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce the image, and compare the number of kept tokens and their indices."""
    configured = configure(method, vector)
    configured.needs(frozenset())
    visual = square_views(1, 1, 0, embeds_ND=vector.float32("features"))
    indices_K = reduce_image(configured, visual, Rule(), num_read=len(visual)).indices_K
    yield from differences("number of tokens", torch.tensor([len(indices_K)]), vector.tensor("n_keep")[None])
    yield from differences("tokens", indices_K, vector.tensor("kept_sorted"))
    yield from differences("tokens picked", indices_K, vector.tensor("selected").sort().values)
