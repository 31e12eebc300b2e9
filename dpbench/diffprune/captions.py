"""What counts as the caption of an image: the names it goes by, and the text or texts in a value."""

from collections.abc import Iterable, Mapping

CAPTION_NAMES = ("caption_enriched", "caption", "text")
"""Columns and keys that hold a caption, the best first; the first is that of visual-layer/imagenet-1k-vl-enriched."""


def caption_names(names: Iterable[str]) -> list[str]:
    """Return those of the names that hold a caption, whatever their case, the best first."""
    known = {name: CAPTION_NAMES.index(name.lower()) for name in names if name.lower() in CAPTION_NAMES}
    return sorted(known, key=lambda name: known[name])


def caption_values(entry: Mapping[str, object]) -> list[object]:
    """Return the values of an entry that may be its caption, the best first."""
    return [entry[name] for name in caption_names(entry)]


def find_captions(values: Iterable[object]) -> tuple[str, ...]:
    """Return the captions in the first of the values that has any.

    Args:
        values: a text or its bytes in UTF-8, a list of them, lists in lists, or None where there is no caption; the
            best first.

    Raises:
        ValueError: there is no caption, or a value is something else.
    """
    odd = ""
    for value in values:
        if texts := _texts(value):
            return texts
        if value not in (None, b"", []) and not isinstance(value, str):
            odd = odd or type(value).__name__
    raise ValueError(f"its caption holds no text (its type is {odd})" if odd else "there is no caption")


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(text for part in value for text in _texts(part))
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    return (text.strip(),) if isinstance(text, str) and text.strip() else ()
