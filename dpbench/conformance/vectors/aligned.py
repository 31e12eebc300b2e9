"""Vectors of a question-guided choice: patches and text are stored as embeddings in one shared space.

Shape letters: V views, N tokens of a view, E the shared space's width, M pieces of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors.tokens import square_views
from dpbench.conformance.vectors.vector import Vector, configure, differences
from dpbench.engine.decision import Rule, reduce_image
from dpbench.method import Method, VisualTokens

BIND = "comparing"
"""Name of the method's function that takes towers and returns a copy that uses them."""


@dataclass(frozen=True, slots=True)
class StoredTowers:
    """Towers that return the vector's embeddings for every image and question.

    Attributes:
        text_ME: the question's embeddings.
    """

    text_ME: Tensor

    def image(self, visual: VisualTokens) -> Tensor:
        """Return the stored patches, which `check_aligned` puts in the place of the tower's output."""
        return visual.hidden_NC

    def text(self, question: str) -> Tensor:
        """Return the stored question."""
        return self.text_ME


def check_aligned(method: Method, vector: Vector) -> Iterator[str]:
    """Reduce the views of one image, and compare the tokens kept of each view."""
    configured = configure(method, vector)
    if not hasattr(configured, BIND):
        raise ValueError(f"{type(configured).__name__} has no method {BIND!r} that takes the stored embeddings")
    bound: Method = getattr(configured, BIND)(StoredTowers(vector.float32("text_embeds")))
    embeds_VND, image_VNE = vector.float32("features"), vector.float32("image_embeds")
    num_views = len(embeds_VND)
    visual = square_views(
        num_views, max(1, num_views - 1), 0, embeds_ND=embeds_VND.flatten(0, 1), hidden_NC=image_VNE.flatten(0, 1)
    )
    rule = Rule(BudgetRequest(keep=vector.integer("n_keep") * num_views))
    indices_K = reduce_image(bound, visual, rule, num_read=len(visual), max_views=num_views).indices_K.sort().values
    picked_VK = vector.tensor("selected") + torch.arange(num_views)[:, None] * embeds_VND.shape[1]
    yield from differences("tokens", indices_K, vector.tensor("mask").flatten().nonzero()[:, 0])
    yield from differences("tokens picked", indices_K, picked_VK.flatten().sort().values)
