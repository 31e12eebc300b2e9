"""Where methods cut inside the LLM and how much each cut leaves, so that a budget is met."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from scipy.optimize import brentq

from dpbench.errors import ConfigError
from dpbench.method import Budget

OF_LAYERS = 32
"""The depth that published cuts are meant for."""
_ROUNDING = 1e-6
"""A solved share of N this little below a whole number is that number."""


def scaled_layers(name: str, layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return cuts of a decoder of 32 layers at the same depth of another, at least one layer apart.

    Args:
        name: the method's, for the error.
        layers: before which of 32 layers it cuts, rising.
        num_layers: the decoder's.

    Raises:
        ConfigError: the decoder has too few layers to tell the cuts apart.
    """
    found: list[int] = []
    for layer in layers:
        found.append(max(round(layer * num_layers / OF_LAYERS), found[-1] + 1 if found else 1))
    if found[-1] >= num_layers:
        raise ConfigError(f"{name}: {num_layers} layers are too few for cuts at {list(layers)} of {OF_LAYERS}")
    return tuple(found)


def solve_keeps(
    name: str, num_visual: int, num_layers: int, shape: Mapping[int, float], budget: Budget
) -> tuple[int, ...]:
    """Return what each cut leaves so that a budget is met: one multiple of given shares, at most everything.

    Args:
        name: the method's, for the error.
        num_visual: N, what the first layer reads.
        num_layers: the decoder's.
        shape: by the layer it is made before, rising from at least 1, each cut's share of N at some budget.
        budget: as the mean over layers, within one, or after the last cut, which is then met exactly.

    Raises:
        ConfigError: the layers before the first cut alone read more than the budget's mean; names the reachable range.
    """
    count, layers, shares = min(budget.count, num_visual), tuple(shape), tuple(shape.values())
    if budget.kind == "final":
        return (*(min(num_visual, int(count * share / shares[-1])) for share in shares[:-1]), count)
    spans = [b - a for a, b in pairwise((*layers, num_layers))]

    def excess(scale: float) -> float:
        rest = sum(span * min(1.0, scale * share) for span, share in zip(spans, shares, strict=True))
        return (layers[0] + rest) / num_layers - count / num_visual

    most = 1 / min(shares)
    if excess(0.0) > 0:
        least = -(-layers[0] * num_visual // num_layers)
        raise ConfigError(
            f"{name}: cannot reach a mean of {count} of {num_visual} visual tokens, as its first cut is before layer "
            f"{layers[0]} of {num_layers}; choose between {least} and {num_visual}, or use --budget-kind final"
        )
    scale = most if excess(most) <= 0 else float(brentq(excess, 0.0, most, xtol=1e-12))
    return tuple(min(num_visual, int(num_visual * scale * share + _ROUNDING)) for share in shares)
