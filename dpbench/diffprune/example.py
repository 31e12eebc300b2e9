"""An image with its caption, as every source of training data returns it, and the error for a broken one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dpbench.tasks.data.image_file import open_image


class BrokenError(Exception):
    """An example cannot be read; the text names it (file, row or tar member) and says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image, RGB and fully decoded, and the text that describes it."""

    image: Image.Image
    caption: str


class Source(Protocol):
    """Examples by index, 0 <= index < length; reading a broken one raises BrokenError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn any error into a BrokenError that names the example; PIL's decoders raise many kinds on broken bytes."""
    try:
        yield
    except Exception as error:
        raise BrokenError(f"{name}: {first_line(error)}") from None


def decode(data: bytes, text: object) -> Example:
    """Decode the bytes of an image file.

    Raises:
        ValueError: the caption is missing; as `open_image`, if the image is broken.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no caption")
    return Example(open_image(data), text.strip())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, to quote in a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
