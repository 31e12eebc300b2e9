"""One golden vector as stored, the hyper-parameters it states, and comparisons with its arrays."""

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
"""The method's field for each hyper-parameter that a vector may state."""
MARKS = {
    "merge_pairs": "merging",
    "pack": "packing",
    "token_budget_rate": "tiles",
    "keep_ratio": "share",
    "key_states": "pivots",
    "attn_text_to_visual": "raters",
    "text_embeds": "aligned",
}
"""Kinds of vectors that do not state their kind, by an array that only this kind has."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The arrays of one file."""

    arrays: Mapping[str, np.ndarray[Any, Any]]

    @classmethod
    def load(cls, path: Path) -> Vector:
        """Load a file.

        Raises:
            MissingError: the file does not exist, or is not an .npz file of plain arrays.
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
            raise MissingError(f"the vector lacks the array {name!r}; it has {', '.join(self.arrays)}")
        return self.arrays[name]

    @property
    def kind(self) -> str:
        """Return the kind, as `variant/kind` if there is a variant; without a stated kind, recognise it by an array."""
        by_array = [kind for name, kind in MARKS.items() if name in self]
        if by_array and "kind" not in self:
            return by_array[0]
        return "/".join(str(self[name]) for name in ("variant", "kind") if name == "kind" or name in self)

    def tensor(self, name: str) -> Tensor:
        """Return an array as stored."""
        return torch.from_numpy(self[name])

    def float32(self, name: str) -> Tensor:
        """Return an array as float32: scores are computed in it, whatever type upstream used."""
        return self.tensor(name).float()

    def integer(self, name: str) -> int:
        """Return an array of one number as an int."""
        return int(self[name])

    def plain(self, name: str) -> object:
        """Return a hyper-parameter as a method takes it: a number, or a tuple of numbers."""
        value = self[name].tolist()
        return tuple(value) if isinstance(value, list) else value


def configure(method: Method, vector: Vector, **settings: object) -> Method:
    """Return the method with a vector's hyper-parameters, and with `parity` on if it has it, or left at None.

    Args:
        method: the other fields keep its values.
        vector: states hyper-parameters under the names of the official code.
        settings: further fields, set by the check that runs the vector.

    Raises:
        ConfigError: the method has no such field.
    """
    field_names = {field.name for field in fields(method) if field.init}
    values = {field: vector.plain(key) for key, field in PARAMETERS.items() if key in vector} | settings
    for name in values:
        if name not in field_names:
            raise ConfigError(f"the vector needs {type(method).__name__} to have a parameter {name!r}")
    defaults = {field.name: field.default for field in fields(method) if field.name == "parity"}
    parity: dict[str, Any] = {name: None if default is None else True for name, default in defaults.items()}
    return replace(method, **parity | values)


def differences(what: str, got: Tensor, expected: Tensor) -> Iterator[str]:
    """Yield a sentence if two lists of integers differ."""
    if got.shape != expected.shape:
        yield f"{what}: {list(got.shape)} instead of {list(expected.shape)}"
    elif not torch.equal(got, expected):
        indices = (got != expected).nonzero()[:, 0].tolist()
        example = f"{got[indices[0]]} instead of {expected[indices[0]]}"
        yield f"{what}: {len(indices)} of {len(got)} differ, the first at {indices[0]}: {example}"


def distances(what: str, got: Tensor, expected: Tensor, tolerance: float) -> Iterator[str]:
    """Yield a sentence if two tensors differ by more than `tolerance` times the largest expected value."""
    if got.shape != expected.shape:
        yield f"{what}: {list(got.shape)} instead of {list(expected.shape)}"
        return
    furthest, scale = float((got - expected).abs().max()), float(expected.abs().max())
    if not furthest <= tolerance * scale:
        yield f"{what}: off by {furthest:.2g} at a scale of {scale:.2g}; {tolerance:g} of that is allowed"
