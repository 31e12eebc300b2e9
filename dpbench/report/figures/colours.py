"""One style per method, the same in all figures and in the page: colour, marker and dash.

Colours are Okabe and Ito's and Paul Tol's muted ones, mid-bright, so that they hold on white and on black. Colour is
never the only cue: methods whose colours a colour-blind reader could confuse have different markers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn.

    Attributes:
        colour: as #RRGGBB.
        marker: matplotlib's letter.
        dash: matplotlib's line style.
    """

    colour: str
    marker: str
    dash: str = "-"


LOOKS: Mapping[str, Look] = {
    "none": Look("#777777", "*", ":"),
    "random": Look("#999999", "x", "--"),
    "grid": Look("#999933", "+", "--"),
    "pool": Look("#44AA99", "s", "--"),
    "downsample": Look("#AA4499", "v", "--"),
    "diffprune": Look("#D55E00", "D"),
    "cls-attention": Look("#56B4E9", "o"),
    "fastv": Look("#E69F00", "^"),
    "pyramiddrop": Look("#009E73", "P"),
    "holov": Look("#0072B2", "s"),
    "prunesid": Look("#CC79A7", "X"),
    "visionzip": Look("#6699CC", "h"),
    "hired": Look("#CC6677", "<"),
    "divprune": Look("#117733", ">"),
    "tome": Look("#997700", "p", "--"),
    "dart": Look("#994455", "d"),
    "sparsevlm": Look("#5566AA", "8"),
    "gumbel-ste": Look("#0072B2", "1", "-."),
    "scale-gate": Look("#56B4E9", "2", "-."),
    "global-denoiser": Look("#009E73", "3", "-."),
    "cdpruner": Look("#BBAA44", "H", "-."),
}
"""Styles of the shipped methods and of the ablation's variants."""

_OTHERS = tuple(
    Look(colour, marker, "-.")
    for marker in ("|", "_")
    for colour in ("#CC3311", "#33BBEE", "#009988", "#EE7733", "#0077BB", "#BBBB00")
)

PLOTLY_MARKERS: Mapping[str, str] = {
    "*": "star",
    "x": "x-thin-open",
    "+": "cross-thin-open",
    "s": "square",
    "v": "triangle-down",
    "D": "diamond",
    "o": "circle",
    "^": "triangle-up",
    "P": "cross",
    "X": "x",
    "h": "hexagon",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "d": "diamond-tall",
    "8": "octagon",
    "H": "hexagon2",
    "|": "line-ns-open",
    "_": "line-ew-open",
    "1": "y-down-open",
    "2": "y-up-open",
    "3": "y-left-open",
}
"""plotly's name of each marker."""
PLOTLY_DASHES: Mapping[str, str] = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
"""plotly's name of each line style."""

STAGES: Mapping[str, str] = {
    "encode": "#0072B2",
    "signals": "#56B4E9",
    "reduce": "#D55E00",
    "splice": "#E69F00",
    "prefill": "#009E73",
}
"""The stages up to the first token, in order, one colour each."""


def look(method: str) -> Look:
    """Return a method's style; that of a method that is not shipped follows from its name."""
    if method in LOOKS:
        return LOOKS[method]
    return _OTHERS[int(sha256(method.encode()).hexdigest(), 16) % len(_OTHERS)]
