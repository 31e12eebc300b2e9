"""The checkpoint that a training resumes from: weights, optimiser state and progress, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import AdamW

from dpbench.diffprune.example import first_line
from dpbench.errors import ConfigError
from dpbench.storage import files

STATE = "training.safetensors"
"""The checkpoint's name in the folder of a training."""
_ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Progress:
    """How far a training is; the checkpoint stores these fields by name.

    Attributes:
        step: steps done.
        micro_batch: images run at once.
        best: the lowest validation loss so far; None before the first.
        waited: validations since then.
        finished: it reached its last step, or validation stopped improving.
        seconds: time spent training, without interruptions.
        full: validation loss of the unpruned backbone; None before the first.
        num_broken: examples that could not be read.
        validated: the last step that was validated; -1 before the first.
        num_held_out: images that validation reads; 0 in checkpoints that do not say it.
        spread: of the untrained scorer's logits, the unit of the recipe's tau; 1 before it is measured, and in
            checkpoints of earlier versions, whose tau is in units of the logits.
    """

    step: int
    micro_batch: int
    best: float | None = None
    waited: int = 0
    finished: bool = False
    seconds: float = 0.0
    full: float | None = None
    num_broken: int = 0
    validated: int = -1
    num_held_out: int = 0
    spread: float = 1.0


def write(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: AdamW, progress: Progress, recipe: Mapping[str, Any]
) -> None:
    """Write a checkpoint; the file is replaced as a whole.

    Raises:
        StorageError: the disk is full; the last checkpoint stays.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        adam = optimizer.state.get(parameter, {})
        tensors |= {f"adam.{number}.{name}": adam[name] for name in _ADAM if name in adam}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"recipe": json.dumps(recipe), "state": json.dumps(asdict(progress))}
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / STATE, save(tensors, metadata))


def read(folder: Path, modules: Mapping[str, nn.Module], optimizer: AdamW) -> Progress:
    """Load a checkpoint into modules and optimiser, and return its progress.

    Raises:
        ConfigError: the file is damaged.
    """
    with _opened(folder) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress = Progress(**json.loads(file.metadata()["state"]))
        for name, module in modules.items():
            module.load_state_dict(_select(tensors, name))
        adam = {number: _select(tensors, f"adam.{number}") for number in range(len(_parameters(optimizer)))}
        groups = optimizer.state_dict()["param_groups"]
        # before the first step a parameter has no state, and none must be loaded for it
        state = {number: tensors for number, tensors in adam.items() if tensors}
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return progress


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe of the training in a folder.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    with _opened(folder) as file:
        recipe: dict[str, Any] = json.loads(file.metadata()["recipe"])
    return recipe


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    """Open the checkpoint; whatever reading it raises is one sentence."""
    path = folder / STATE
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--resume: {path} is damaged ({first_line(error)}), perhaps by a copy that was cut; copy it again, or "
            "begin again with another --out"
        ) from None


def _parameters(optimizer: AdamW) -> Sequence[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
