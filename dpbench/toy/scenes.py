"""Synthetic scenes with known content: a few coloured shapes on a textured 96x96 background.

A scene is a set of objects, each in its own cell of a 3x3 raster. One scene in eight, by a hash of its objects and
their places, is held out: the benchmarks draw only held-out scenes, the training recipe only the others.

Shape letters: B scenes, S pixels of the square side (96).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

SIDE = 96
CELL = 32
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (225, 55, 55),
    "green": (60, 190, 80),
    "blue": (70, 120, 240),
    "yellow": (240, 215, 60),
    "purple": (185, 85, 215),
    "white": (242, 242, 242),
}
SIZES = {"small": 20, "large": 30}
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
GLYPHS = ("2", "3", "4", "7", "H", "K", "T", "X")
MAX_OBJECTS = 4
_GLYPH_SCALE = 2
_GLYPH_INK = (15, 15, 15)
_HELD_OUT_IN = 8


@dataclass(frozen=True, slots=True, order=True)
class SceneObject:
    """One object: `glyph` is a digit or letter written on it (large objects only), or empty."""

    place: str
    colour: str
    shape: str
    size: str
    glyph: str = ""

    @property
    def row(self) -> int:
        """Row of the raster, 0 at the top."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """Column of the raster, 0 at the left."""
        return PLACES.index(self.place) % 3


Scene = tuple[SceneObject, ...]


def random_object(place: str, rng: np.random.Generator) -> SceneObject:
    """Draw colour, shape, size and glyph independently; six in ten are large, six in ten of those marked."""
    size = "large" if rng.random() < 0.6 else "small"
    glyph = str(rng.choice(GLYPHS)) if size == "large" and rng.random() < 0.6 else ""
    return SceneObject(place, str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), size, glyph)


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw one to four objects in distinct places, sorted."""
    places = rng.permutation(PLACES)[: rng.integers(1, MAX_OBJECTS + 1)]
    return tuple(sorted(random_object(str(place), rng) for place in places))


def is_held_out(scene: Scene) -> bool:
    """Return True if a scene belongs to the benchmarks and must not be trained on."""
    text = "|".join(f"{o.place},{o.colour},{o.shape},{o.size},{o.glyph}" for o in sorted(scene))
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT_IN == 0


def training_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene that no benchmark may contain."""
    while is_held_out(scene := random_scene(rng)):
        pass
    return scene


@cache
def glyph_bitmaps() -> dict[str, NDArray[np.bool_]]:
    """Read the 7x5 glyph bitmaps that ship with the package, doubled to 14x10 pixels."""
    blocks = files("dpbench.toy").joinpath("glyphs.txt").read_text(encoding="ascii").strip().split("\n\n")
    bitmaps = {}
    for name, *rows in (block.split("\n") for block in blocks):
        small = np.array([[char == "#" for char in row] for row in rows])
        bitmaps[name] = small.repeat(_GLYPH_SCALE, 0).repeat(_GLYPH_SCALE, 1)
    return bitmaps


@cache
def shape_mask(shape: str, side: int) -> NDArray[np.bool_]:
    """Return the pixels of a shape inside its side x side box."""
    y, x = np.mgrid[:side, :side] + 0.5
    from_x, from_y = np.abs(x - side / 2), np.abs(y - side / 2)
    masks: dict[str, NDArray[np.bool_]] = {
        "circle": np.hypot(from_x, from_y) <= side / 2,
        "square": np.ones((side, side), dtype=np.bool_),
        "triangle": from_x <= y / 2,
        "cross": np.minimum(from_x, from_y) <= side / 5,
    }
    return masks[shape]


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render scenes with fresh textures and jitter, (B, S, S, 3) uint8."""
    num = len(scenes)
    base = rng.integers(70, 130, (num, 1, 1, 3)) + rng.integers(-25, 26, (num, 12, 12, 1))
    blocks = np.roll(base.repeat(8, 1).repeat(8, 2), tuple(rng.integers(0, 8, 2)), axis=(1, 2))  # off the patch grid
    canvas = blocks + rng.integers(-18, 19, (num, SIDE, SIDE, 1))
    for image, scene in zip(canvas, scenes, strict=True):
        for item in scene:
            _paint(image, item, rng)
    noisy: NDArray[np.int64] = np.clip(canvas + rng.integers(-6, 7, canvas.shape), 0, 255)
    return noisy.astype(np.uint8)


def _paint(image: NDArray[np.int64], item: SceneObject, rng: np.random.Generator) -> None:
    side = SIZES[item.size]
    slack = CELL - side
    top = item.row * CELL + int(rng.integers(0, slack + 1))
    left = item.column * CELL + int(rng.integers(0, slack + 1))
    box = image[top : top + side, left : left + side]
    box[shape_mask(item.shape, side)] = COLOURS[item.colour]
    if item.glyph:
        bitmap = glyph_bitmaps()[item.glyph]
        height, width = bitmap.shape
        y = side - height - 1 if item.shape == "triangle" else (side - height) // 2
        x = (side - width) // 2
        box[y : y + height, x : x + width][bitmap] = _GLYPH_INK
