"""The errors that a user can cause or fix.

DpbenchError
+-- ConfigError        bad manifest, flag, name or parameter
+-- UnsupportedError   this method cannot run on this backbone
+-- MissingError       weights or data are not where they were looked for
+-- ImageError         the backbone's processor cannot read an image; in a benchmark a failed sample
+-- RecordError        a record or journal that cannot be used (schema, another environment)
+-- StorageError       a file cannot be written: the disk is full, read-only or failing
"""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class DpbenchError(Exception):
    """Base of every error whose message is all the user needs: printed without a traceback.

    exit_code: of the command; 2 means that the request is wrong.
    """

    exit_code: ClassVar[int] = 2


class ConfigError(DpbenchError):
    """A manifest, flag, name or parameter is wrong."""


class UnsupportedError(DpbenchError):
    """A method needs something this backbone does not have."""


class MissingError(DpbenchError):
    """Weights or data are not where they were looked for."""


class ImageError(DpbenchError):
    """The backbone's processor cannot read an image."""


class RecordError(DpbenchError):
    """A record or journal cannot be used."""


class StorageError(DpbenchError):
    """A file cannot be written, though the request was right; what was written before is intact."""

    exit_code: ClassVar[int] = 1


def explain(error: Exception) -> str:
    """Return an error in one line of at most 200 characters; an unexpected one begins with its type."""
    text = " ".join(str(error if isinstance(error, DpbenchError) else f"{type(error).__name__}: {error}").split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def format_value(value: object) -> str:
    """Return a value as an error sentence shows it: the beginning of a long one."""
    text = reprlib.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest known names, or all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
