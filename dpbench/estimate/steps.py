"""What a manifest reads, weights, data and scorers: sizes, what is missing, and the commands that get it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml

from dpbench import backbones, registry, tasks
from dpbench.diffprune.recipe import Fill, Variant
from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.estimate.shapes import count_parameters
from dpbench.manifest.schema import BackboneEntry, Manifest
from dpbench.tasks.data.root import configs, is_present

CHECKPOINT = "checkpoint"
"""The parameter that names a trained scorer's folder."""
HOW_TRAINED = re.compile(rf"[-/]({'|'.join(get_args(Variant))})(?:-({'|'.join(get_args(Fill))}))?(?:-(\d+))?$")
"""Variant, fill and seed in the name of a scorer's folder."""
TRAINING_DATA = ("--data", "visual-layer/imagenet-1k-vl-enriched", "--param", "fraction=0.1")
"""The captioned images that the paper trains on (section 5.1); its text lost the share, ours takes an A6000 a night."""
PULL = "dpbench data pull "
HUB_BYTES = 2
"""Of a parameter in the hub's files: all backbones there are float16 or bfloat16."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a run reads.

    Attributes:
        name: of the weights, the benchmark or the scorer.
        megabytes: to fetch, about; None if unknown, 0 if nothing is fetched.
        is_there: nothing has to be done.
        command: gets it.
    """

    name: str
    megabytes: float | None
    is_there: bool
    command: str


def list_items(manifest: Manifest, data_root: Path | None) -> list[Item]:
    """Return what a manifest reads, in the order to get it: weights, data, scorers."""
    if manifest.purpose == "profile":
        return []  # random weights take the same time
    parts = manifest.parts()
    weights = [_weights(part.backbone) for part in parts]
    asked = manifest.tasks if manifest.purpose == "run" else ()
    data = [_data(name, data_root) for name in dict.fromkeys(asked)]
    scorers = [item for part in parts for item in _method_files(part)]
    return [*weights, *data, *{item.name: item for item in scorers}.values()]


def missing_commands(items: Sequence[Item]) -> list[str]:
    """Return the commands that get what is missing: weights first, then all data in one command, then scorers."""
    missing = [item.command for item in items if not item.is_there]
    downloads = [command for command in missing if command.startswith("hf download")]
    pulls = [command for command in missing if command.startswith(PULL)]
    rest = [command for command in missing if command not in downloads and command not in pulls]
    return [*downloads, *([_pull_together(pulls)] if pulls else []), *rest]


def _pull_together(pulls: Sequence[str]) -> str:
    """Join commands of the form `dpbench data pull TASK [--to ROOT]` into one."""
    words = [shlex.split(command.removeprefix(PULL)) for command in pulls]
    return shlex.join([*PULL.split(), *(task for task, *_ in words), *words[0][1:]])


def _weights(entry: BackboneEntry) -> Item:
    wanted = entry.weights or backbones.find(entry.name).weights
    revision = f" --revision {entry.revision}" if entry.revision else ""
    megabytes: float | None = count_parameters(entry) * HUB_BYTES / 1e6
    if wanted.startswith("package:"):
        wanted, megabytes = f"{entry.name} inside the package", 0.0
    elif entry.weights:  # any folder or repository: its size is not known
        megabytes = None
    try:
        backbones.locate(entry.name, entry.weights, entry.revision)
    except (ConfigError, MissingError):
        return Item(wanted, megabytes, is_there=False, command=f"hf download {wanted}{revision}")
    return Item(wanted, megabytes, is_there=True, command="")


def _data(name: str, data_root: Path | None) -> Item:
    task = tasks.find(name)
    keys = [f"{task.repository}/{config}/{task.split}" for config in configs(task)]
    known = [float(_sizes()[key]["megabytes"]) for key in keys if key in _sizes()]
    command = shlex.join([*PULL.split(), name, *(["--to", str(data_root)] if data_root else [])])
    return Item(name, sum(known) if known else None, is_present(name, data_root), command)


@cache
def _sizes() -> Mapping[str, Any]:
    path = files("dpbench.tasks.data") / "sizes.yaml"
    listed: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return listed


def _method_files(part: Manifest) -> Iterator[Item]:
    """Yield the files of their own that methods need and that are missing."""
    name = part.backbone.name
    for entry in part.methods:
        params = entry.params_on(name)
        method = registry.load(entry.name, params)
        try:
            method.files(name)
        except MissingError as error:
            checkpoint = params.get(CHECKPOINT)
            command = train_command(name, str(checkpoint)) if checkpoint else _command_in(str(error))
            megabytes = 0.0 if command.startswith("dpbench train") else None
            what = str(checkpoint) if checkpoint else f"what {entry.name} reads on {name}"
            yield Item(what, megabytes, is_there=False, command=command)
        except DpbenchError:
            continue  # the method does not run on this backbone, which the run reports


def train_command(backbone: str, checkpoint: str) -> str:
    """Return the command that trains a scorer into a folder whose name may end with a variant and a seed."""
    words = ["dpbench", "train", "--backbone", backbone]
    if found := HOW_TRAINED.search(checkpoint):
        variant, fill, seed = found.groups()
        words += ["--variant", variant]
        words += ["--param", f"fill={fill}"] if fill else []
        words += ["--seed", seed] if seed else []
    if backbone != "toy-llava":
        words += TRAINING_DATA
    return shlex.join([*words, "--out", checkpoint])


def _command_in(message: str) -> str:
    """Return the command that an error message ends with or tells to run; the message where there is none."""
    found = re.search(r"(?:hf download|dpbench train|dpbench data pull) [^,;`]+", message)
    return found[0].strip() if found else f"# {message}"
