"""A training of toy-llava that takes a second, and what tests compare of two of them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import safe_open

from dpbench.diffprune.recipe import Recipe, make_recipe
from dpbench.diffprune.resume import STATE
from dpbench.diffprune.train import Ended, train

SMALL = {
    "dtype": "float32",
    "steps": 3,
    "batch_size": 2,
    "num_validation": 2,
    "validate_every": 2,
    "keep": "16,32",
    "hidden": 16,
}
"""Validates before the first step, after the second and after the last; step 1 is between validations."""


def small_recipe(**changes: object) -> Recipe:
    return make_recipe("toy-llava", {**SMALL, **changes})


def train_small(out: Path, *, resume: bool = False, **changes: object) -> Ended:
    return train(small_recipe(**changes), out, resume=resume, console=Console(quiet=True))


def small_command(out: Path, **changes: object) -> list[str]:
    """Return the arguments of `dpbench` for the same training."""
    settings = [word for name, value in (SMALL | changes).items() for word in ("--param", f"{name}={value}")]
    return ["train", "--backbone", "toy-llava", "--out", str(out), *settings]


def log_rows(folder: Path) -> list[dict[str, float]]:
    """Return the log of a training, without its speed, which is never the same twice."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def progress_of(folder: Path) -> dict[str, Any]:
    """Return the stored progress of a training, without the time it took."""
    with safe_open(folder / STATE, "pt") as file:
        return json.loads(file.metadata()["state"]) | {"seconds": 0}


def result_of(folder: Path) -> tuple[dict[str, bytes], list[dict[str, float]], dict[str, Any]]:
    """Return all that a training leaves and that two equal trainings share: weights as bytes, log and progress."""
    with safe_open(folder / STATE, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    scorer = (folder / "scorer.safetensors").read_bytes()
    return {**tensors, "scorer": scorer}, log_rows(folder), progress_of(folder)
