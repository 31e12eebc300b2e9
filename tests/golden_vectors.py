"""The stored input and output tensors of the methods' official code, in `tests/goldens`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def find_vectors(prefix: str) -> list[Path]:
    """Return the vectors of one method, sorted by name."""
    return sorted((Path(__file__).parent / "goldens").glob(f"{prefix}_*.npz"))


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return a vector's arrays by name."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return a vector's arrays by name, as tensors."""
    return {name: torch.from_numpy(array) for name, array in load_arrays(path).items()}
