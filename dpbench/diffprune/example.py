"""An image with its caption, as every source of training data returns it, and the error for a broken one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dpbench.diffprune.captions import find_captions
from dpbench.tasks.data.image_file import open_image


class BrokenError(Exception):
    """An example cannot be read; the text names it (file, row or tar member) and says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image, RGB and fully decoded, and the text that describes it.

    Attributes:
        captions: every text that describes the image; `caption` is the first, unless another was chosen.
    """

    image: Image.Image
    caption: str
    captions: tuple[str, ...] = ()


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


def decode(data: bytes, captions: Iterable[object]) -> Example:
    """Decode the bytes of an image file.

    Args:
        data: the file.
        captions: values that may be the caption, the best first.

    Raises:
        ValueError: the caption is missing; as `open_image`, if the image is broken.
    """
    texts = find_captions(captions)
    return Example(open_image(data), texts[0], texts)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, to quote in a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
