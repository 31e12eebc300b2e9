"""The backbones by name, and how to load one. Listing them imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dpbench.errors import ConfigError, MissingError, did_you_mean

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone


NEEDED = ("config.json", "processor_config.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a backbone before anything heavy loads.

    Attributes:
        summary: one line for `dpbench list backbones`.
        module: the module that serves it.
        weights: default weights: a hub repository, or `package:` and a folder inside the package.
        num_visual: visual tokens of every image, or None where it follows the image's size (then budgets are rates).
        tiles: the image is cut into AnyRes tiles.
    """

    summary: str
    module: str
    weights: str
    num_visual: int | None = None
    tiles: bool = False


FAMILIES: Mapping[str, Family] = {
    "llava-1.5": Family(
        "LLaVA-1.5-7B: CLIP ViT-L/14-336, 576 visual tokens",
        "dpbench.backbones.llava",
        "llava-hf/llava-1.5-7b-hf",
        576,
    ),
    "toy-llava": Family(
        "LLaVA in miniature, trained, inside the package: 144 visual tokens, runs on a laptop CPU",
        "dpbench.backbones.llava",
        "package:toy/weights",
        144,
    ),
}


def find(name: str) -> Family:
    """Return a backbone's family.

    Raises:
        ConfigError: there is no backbone of that name.
    """
    if name not in FAMILIES:
        raise ConfigError(f"--backbone: there is no backbone {name!r}; {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def locate(name: str, weights: str | None = None, revision: str | None = None) -> Path:
    """Return the folder with a backbone's weights: inside the package, on disk, or in the hub's cache.

    Raises:
        ConfigError: unknown name.
        MissingError: it is in none of them, or incomplete; says what to do.
    """
    wanted = weights or find(name).weights
    if wanted.startswith("package:"):
        folder = Path(str(files("dpbench"))) / wanted.removeprefix("package:")
    elif Path(wanted).expanduser().is_dir() or wanted.startswith(("/", ".", "~")) or wanted.count("/") > 1:
        folder = Path(wanted).expanduser()
    else:
        folder = _cached(name, wanted, revision)
    absent = [file for file in NEEDED if not (folder / file).is_file()]
    if absent:
        raise MissingError(f"--backbone {name}: {folder} lacks {', '.join(absent)}; give a folder that has them")
    return folder


def _cached(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise MissingError(
            f"--backbone {name}: {repository} is no folder here and not in the hub's cache; "
            f"fetch them with: hf download {repository}{f' --revision {revision}' if revision else ''}"
        ) from None


def load(
    name: str,
    *,
    weights: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
) -> Backbone:
    """Load a backbone's weights and processor.

    Args:
        name: as in `FAMILIES`.
        weights: a folder or hub repository in place of the default one.
        revision: commit, tag or branch of a hub repository.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16".
        attention: transformers' attention kernel.

    Raises:
        ConfigError: unknown name.
        MissingError: the weights are not there.
    """
    family = find(name)
    folder = locate(name, weights, revision)
    serve = importlib.import_module(family.module)
    return serve.load(name, folder, device=device, dtype=dtype, attention=attention)  # type: ignore[no-any-return]
