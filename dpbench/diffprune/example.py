"""A picture with its caption, as every source of training data gives it, and what is said of one that is broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from PIL import Image, UnidentifiedImageError


class BrokenError(Exception):
    """An example cannot be read; the text names it (file, row or tar member) and says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, RGB and fully decoded, and the text that describes it."""

    image: Image.Image
    caption: str


class Source(Protocol):
    """Examples by index, 0 <= index < length; reading a broken one raises BrokenError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Name the example in whatever goes wrong: PIL's decoders raise errors of many kinds on broken bytes."""
    try:
        yield
    except Exception as error:
        raise BrokenError(f"{name}: {first_line(error)}") from None


def decoded(data: bytes, text: object) -> Example:
    """Return an image file's picture with its caption.

    Raises:
        ValueError: there is no caption, or no image that PIL knows; PIL's own errors where it is broken.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no caption")
    try:
        with Image.open(BytesIO(data)) as image:
            return Example(image.convert("RGB"), text.strip())
    except UnidentifiedImageError:  # its own text has an address in memory
        raise ValueError(f"its {len(data)} bytes are no image PIL knows") from None


def first_line(error: BaseException) -> str:
    """Return how an error's text begins, to be quoted within a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
