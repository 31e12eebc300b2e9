"""Golden vectors: what an official code decided on stored inputs, and whether a method decides the same.

A vector is one .npz file. It is run through the contract and the engine, as every benchmark run is: there is no second
way to a method's decision. Which inputs it stores says how it is run, by its `kind` or, where it has one, its `variant`
(before the LLM); one that states neither is told by its arrays. No method is known by name here. A file that cannot be
used has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dpbench.conformance.vectors.aligned import check_aligned
from dpbench.conformance.vectors.decoder import check_batch, check_layer, check_row, check_stage
from dpbench.conformance.vectors.endtoend import check_end_to_end
from dpbench.conformance.vectors.merging import check_merging, check_packing
from dpbench.conformance.vectors.pivots import check_pivots
from dpbench.conformance.vectors.raters import check_raters
from dpbench.conformance.vectors.share import check_share
from dpbench.conformance.vectors.tiles import check_tiles
from dpbench.conformance.vectors.tokens import check_tokens
from dpbench.conformance.vectors.vector import Vector
from dpbench.errors import ConfigError, MissingError, did_you_mean
from dpbench.method import Method

KINDS: Mapping[str, Callable[[Method, Vector], Iterator[str]]] = {
    "attn_row": check_row,
    "layer": check_layer,
    "stage": check_stage,
    "batch": check_batch,
    "e2e": check_end_to_end,
    "merging": check_merging,
    "packing": check_packing,
    "tiles": check_tiles,
    "share": check_share,
    "pivots": check_pivots,
    "raters": check_raters,
    "aligned": check_aligned,
}
"""How a vector is run that has no variant; each yields a sentence per difference from the official code."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One vector's outcome.

    Attributes:
        path: the file.
        kind: its kind, with its variant where it has one; "?" where it could not be read.
        passed: everything it stores came out the same.
        detail: what did not, or why it cannot be used; empty where it passed.
    """

    path: Path
    kind: str
    passed: bool
    detail: str


def find(name: str, folder: Path) -> list[Path]:
    """Return the vectors of a method in a folder, `<name>_*.npz`, sorted.

    Raises:
        MissingError: there is none.
    """
    found = sorted(folder.glob(f"{name}_*.npz"))
    if not found:
        raise MissingError(f"--goldens: {folder} has no file {name}_*.npz; a method's vectors start with its name")
    return found


def check(method: Method, path: Path) -> Checked:
    """Run one vector through a method that is given the hyper-parameters it states.

    Args:
        method: fields that the vector does not state stay as they are.
        path: an .npz file.
    """
    kind = "?"
    try:
        vector = Vector.load(path)
        kind = vector.kind
        with torch.no_grad():
            problems = list(_runner(vector)(method, vector))
    except Exception as error:  # methods are other people's: what one raises is its outcome, the next vector goes on
        problems = [f"{type(error).__name__}: {error}"]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Checked(path, kind, not problems, problems[0] + more if problems else "")


def _runner(vector: Vector) -> Callable[[Method, Vector], Iterator[str]]:
    if "variant" in vector:
        return check_tokens
    if vector.kind not in KINDS:
        raise ConfigError(f"no vector of kind {vector.kind!r} can be run; {did_you_mean(vector.kind, KINDS)}")
    return KINDS[vector.kind]
