"""What can go wrong in a user's hands.

DpbenchError
+-- ConfigError        bad manifest, flag, name or parameter
+-- UnsupportedError   this method cannot run on this backbone
+-- MissingError       weights or data are not where they were looked for
+-- RecordError        a record or journal that cannot be used (schema, another environment)
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DpbenchError(Exception):
    """Base of every error whose message is all the user needs: printed without a traceback, exit code 2."""


class ConfigError(DpbenchError):
    """A manifest, flag, name or parameter is wrong."""


class UnsupportedError(DpbenchError):
    """A method needs something this backbone does not have."""


class MissingError(DpbenchError):
    """Weights or data are not where they were looked for."""


class RecordError(DpbenchError):
    """A record or journal cannot be used."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest known names, or all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
