"""One golden vector as it is stored, the hyper-parameters it states, and how results are compared with it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpbench.errors import ConfigError, MissingError
from dpbench.method import Method

PARAMETERS = {
    "k": "layer",
    "r": "ratio",
    "layer_list": "layers",
    "ratios": "ratios",
    "num_crops": "num_crops",
    "lam": "variance_weight",
    "eps": "eps",
    "attn_scale": "attention_scale",
    "contextual": "contextual",
    "token_budget_rate": "token_budget_rate",
    "alpha": "alpha",
    "keep_ratio": "keep_ratio",
    "reduction_ratio": "ratio",
    "pivot_image": "pivot_image",
    "pivot_text": "pivot_text",
}
"""Which field of a method takes a hyper-parameter that a vector states."""
MARKS = {
    "merge_pairs": "merging",
    "pack": "packing",
    "token_budget_rate": "tiles",
    "keep_ratio": "share",
    "key_states": "pivots",
    "attn_text_to_visual": "raters",
    "text_embeds": "aligned",
}
"""The kind of a vector that does not state one, by an array that no other kind has."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The arrays of one file."""

    arrays: Mapping[str, np.ndarray[Any, Any]]

    @classmethod
    def load(cls, path: Path) -> Vector:
        """Load a file.

        Raises:
            MissingError: it does not exist, or is not an .npz file of plain arrays.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return cls({name: stored[name] for name in stored.files})
        except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise MissingError(f"this is not an .npz file of plain arrays ({error})") from None

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self.arrays:
            raise MissingError(f"the vector has no array {name!r}, which it needs; it has {', '.join(self.arrays)}")
        return self.arrays[name]

    @property
    def kind(self) -> str:
        """Return its kind, after its variant if it has one; a vector that states none is recognised by its arrays."""
        marked = [kind for mark, kind in MARKS.items() if mark in self]
        if marked and "kind" not in self:
            return marked[0]
        return "/".join(str(self[name]) for name in ("variant", "kind") if name == "kind" or name in self)

    def tensor(self, name: str) -> Tensor:
        """Return an array as stored."""
        return torch.from_numpy(self[name])

    def float32(self, name: str) -> Tensor:
        """Return an array as float32, in which scores are computed whatever type upstream used."""
        return self.tensor(name).float()

    def integer(self, name: str) -> int:
        """Return a whole number."""
        return int(self[name])

    def plain(self, name: str) -> object:
        """Return a hyper-parameter as a method takes it: a number, or a tuple of numbers."""
        value = self[name].tolist()
        return tuple(value) if isinstance(value, list) else value


def configure(method: Method, vector: Vector, **settings: object) -> Method:
    """Return the method with a vector's hyper-parameters, and with the quirks of the official code switched on.

    Args:
        method: keeps its other fields.
        vector: states hyper-parameters under the names of the official code.
        settings: fields that follow from how the vector is run.

    Raises:
        ConfigError: the method has no such field.
    """
    known = {field.name for field in fields(method) if field.init}
    stated = {field: vector.plain(key) for key, field in PARAMETERS.items() if key in vector}
    values = stated | settings
    for name in values:
        if name not in known:
            raise ConfigError(f"the vector needs {type(method).__name__} to have a parameter {name!r}")
    quirks: dict[str, Any] = {"parity": True} if "parity" in known else {}
    return replace(method, **quirks | values)


def differences(what: str, got: Tensor, wanted: Tensor) -> Iterator[str]:
    """Yield a sentence if two lists of whole numbers differ anywhere."""
    if got.shape != wanted.shape:
        yield f"{what}: {list(got.shape)} instead of {list(wanted.shape)}"
    elif not torch.equal(got, wanted):
        places = (got != wanted).nonzero()[:, 0].tolist()
        example = f"{got[places[0]]} instead of {wanted[places[0]]}"
        yield f"{what}: {len(places)} of {len(got)} differ, the first at {places[0]}: {example}"


def distances(what: str, got: Tensor, wanted: Tensor, tolerance: float) -> Iterator[str]:
    """Yield a sentence if two tensors differ by more than `tolerance` times the largest expected value."""
    if got.shape != wanted.shape:
        yield f"{what}: {list(got.shape)} instead of {list(wanted.shape)}"
        return
    furthest, scale = float((got - wanted).abs().max()), float(wanted.abs().max())
    if not furthest <= tolerance * scale:
        yield f"{what}: off by {furthest:.2g} at a scale of {scale:.2g}; {tolerance:g} of it is allowed"
