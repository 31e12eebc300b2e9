"""What the tests of scorers share."""

from dpbench.diffprune.checkpoint import Card
from dpbench.diffprune.scorer import ScorerSize


def bare_card(backbone: str, size: ScorerSize) -> Card:
    """Return the card of a scorer that nobody trained."""
    return Card(
        backbone=backbone,
        backbone_weights="random",
        size=size,
        variant="diffprune",
        keep="4",
        tau=(1.0, 0.1),
        data="toy",
        seed=0,
        step=1,
        losses={},
        hours=0.0,
        versions={},
    )
