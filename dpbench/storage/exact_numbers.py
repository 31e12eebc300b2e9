"""Is a number in a file written as one? Text, true and .nan are taken for numbers by Python, and change a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Place = tuple[int | str, ...]
"""The keys and positions that lead to a value."""


def find_inexact(given: Any, taken: Any, place: Place = ()) -> tuple[Place, Any] | None:
    """Return where something else was taken for a finite number, and what it is; None if nothing was.

    Args:
        given: what was written: numbers, text, truth values, lists and mappings of them.
        taken: what it was converted to; parts that have no counterpart are passed over.
        place: of `given` in a larger whole.
    """
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        pairs = [(key, given[key], taken[key]) for key in given if key in taken]
    elif isinstance(given, list | tuple) and isinstance(taken, Sequence):
        pairs = [(at, *pair) for at, pair in enumerate(zip(given, taken, strict=False))]
    else:
        is_number = isinstance(taken, int | float) and not isinstance(taken, bool)
        is_exact = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
        return (place, given) if is_number and given is not None and not is_exact else None
    found = (find_inexact(each, other, (*place, key)) for key, each, other in pairs)
    return next((one for one in found if one), None)
