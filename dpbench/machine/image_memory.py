"""How much memory one image may take. No torch."""

from __future__ import annotations

MOST_PIXELS = 2**30 // 4 // 3
"""A quarter of a GiB as RGB, from where Pillow warns of an image. Preprocessing takes up to four times that."""


def explain_too_large(size: tuple[int, int], enlarged: tuple[int, int] | None = None) -> str | None:
    """Return why an image cannot be read, or None if it has few enough pixels.

    Args:
        size: its width and height.
        enlarged: width and height that preprocessing would give it on the way, if that is larger.
    """
    width, height = size
    if width * height > MOST_PIXELS:
        return f"an image of {width} x {height} pixels is too large, at most {MOST_PIXELS:,} are read; shrink it"
    if enlarged is not None and enlarged[0] * enlarged[1] > MOST_PIXELS:
        return (
            f"an image of {width} x {height} pixels is too long: preprocessing would make {enlarged[0]} x "
            f"{enlarged[1]} of it, and at most {MOST_PIXELS:,} pixels are read; crop it"
        )
    return None
