"""Golden vectors: what an official code decided on stored inputs, and whether a method decides the same.

A vector is one .npz file. It is run through the contract and the engine, like every benchmark run. Its `variant` (for
decisions before the LLM), its `kind` or else the names of its arrays say how to run it. No method is named here. A
file that cannot be used counts as failed.
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
"""How to run a vector without a variant, by kind; yields one sentence per difference from the official code."""


@dataclass(frozen=True, slots=True)
class VectorResult:
    """One vector's outcome.

    Attributes:
        path: the file.
        kind: its kind, after its variant if it has one; "?" if it could not be read.
        passed: True if the method reproduces everything that is stored.
        detail: the first difference, or why the file cannot be used; empty if it passed.
    """

    path: Path
    kind: str
    passed: bool
    detail: str


def find(name: str, folder: Path) -> list[Path]:
    """Return the vectors of a method in a folder, `<name>_*.npz`, sorted.

    Raises:
        MissingError: there are none.
    """
    paths = sorted(folder.glob(f"{name}_*.npz"))
    if not paths:
        raise MissingError(f"--goldens: {folder} has no file {name}_*.npz; a method's vectors start with its name")
    return paths


def check(method: Method, path: Path) -> VectorResult:
    """Run a method on one vector, with the hyper-parameters that the vector states.

    Args:
        method: keeps its own values for fields that the vector does not state.
        path: an .npz file.
    """
    kind = "?"
    try:
        vector = Vector.load(path)
        kind = vector.kind
        with torch.no_grad():
            problems = list(_find_check(vector)(method, vector))
    except Exception as error:  # a method is third-party code: its error is this vector's outcome
        problems = [f"{type(error).__name__}: {error}"]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return VectorResult(path, kind, not problems, problems[0] + more if problems else "")


def _find_check(vector: Vector) -> Callable[[Method, Vector], Iterator[str]]:
    if "variant" in vector:
        return check_tokens
    if vector.kind not in KINDS:
        raise ConfigError(f"no vector of kind {vector.kind!r} can be run; {did_you_mean(vector.kind, KINDS)}")
    return KINDS[vector.kind]
