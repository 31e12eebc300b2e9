"""One style per method, the same in all figures and in the page: colour, marker and dash.

Colours are Okabe and Ito's and Paul Tol's muted ones, mid-bright, so that they hold on white and on black. Colour is
never the only cue: methods whose colours a colour-blind reader could confuse have different markers. Methods that are
not shipped have open markers and stars, which no shipped one has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

Marker = str | tuple[int, int, int]
"""matplotlib's letter, or the corners, style and angle of a star."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn.

    Attributes:
        colour: as #RRGGBB.
        marker: its shape.
        dash: matplotlib's line style.
        filled: False for the outline of the shape alone.
    """

    colour: str
    marker: Marker
    dash: str = "-"
    filled: bool = True

    @property
    def line(self) -> Mapping[str, Any]:
        """Return matplotlib's arguments for a line with markers."""
        face = self.colour if self.filled else "white"
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markerfacecolor": face}

    @property
    def symbol(self) -> str:
        """Return plotly's name of the marker."""
        name = PLOTLY_MARKERS[self.marker]
        return name if self.filled or name.endswith("-open") else f"{name}-open"


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
    "gumbel-ste": Look("#0072B2", "o", "-."),
    "gumbel-ste-mean": Look("#882255", "s", "-."),
    "gumbel-ste-noise": Look("#DDCC77", "D", "-."),
    "identity-ste": Look("#332288", "^", "--"),
    "identity-ste-mean": Look("#661100", "P", "--"),
    "identity-ste-noise": Look("#88CCEE", "X", "--"),
    "scale-gate": Look("#56B4E9", "v", "-."),
    "global-denoiser": Look("#009E73", "^", "-."),
    "cdpruner": Look("#BBAA44", "H", "-."),
}
"""Styles of the shipped methods, and of the ablation's variants with what fills the place of a dropped token."""

_OPEN: tuple[Marker, ...] = ("o", "s", "^", "D", "v", "p", "h", "<", ">", "P", "X", "d", "8")
_STARS: tuple[Marker, ...] = ((4, 1, 0), (3, 1, 0), (6, 1, 0), (4, 1, 45))
_OTHERS = tuple(
    Look(colour, marker, "-.", filled=marker in _STARS)
    for colour in ("#CC3311", "#33BBEE", "#009988", "#EE7733", "#0077BB", "#BBBB00")
    for marker in (*_OPEN, *_STARS)
)

PLOTLY_MARKERS: Mapping[Marker, str] = {
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
    (3, 1, 0): "star-triangle-up",
    (4, 1, 0): "star-diamond",
    (4, 1, 45): "star-square",
    (6, 1, 0): "hexagram",
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
    return LOOKS[method] if method in LOOKS else _OTHERS[_place(method)]


def looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return the style of every series of a figure, no two the same.

    A method's first series has the style of `look`; further ones, with other parameters, and methods whose names lead
    to one style take the next that is free.

    Args:
        methods: the method of every series, by its label.
    """
    chosen: dict[str, Look] = {}
    for label in sorted(methods, key=lambda label: (methods[label] not in LOOKS, len(label), label)):
        wanted, taken = look(methods[label]), set(chosen.values())
        start = _place(label)
        rest = (_OTHERS[(start + step) % len(_OTHERS)] for step in range(len(_OTHERS)))
        chosen[label] = next((style for style in (wanted, *rest) if style not in taken), wanted)
    return chosen


def _place(name: str) -> int:
    return int(sha256(name.encode()).hexdigest(), 16) % len(_OTHERS)
