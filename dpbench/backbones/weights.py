"""Find a backbone's weights, and refuse files that are missing, damaged or another model's. No torch, no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpbench.backbones.families import FAMILIES, RANDOM, find
from dpbench.errors import ConfigError, MissingError, format_value
from dpbench.machine import hub_cache

_CONFIGS = ("config.json", "tokenizer.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARDS = "model-*-of-*.safetensors"
_ADAPTER = "adapter_config.json"
_FLOATING = ("F64", "F32", "F16", "BF16")
HARMLESS = ("position_ids", "rotary_emb.inv_freq")
"""Ends of keys that old checkpoints hold and models compute themselves."""
_UNPACKED_BY = {
    "bitsandbytes": ("bitsandbytes",),
    "awq": ("gptqmodel",),
    "gptq": ("optimum", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors",),
}
"""Packages that transformers needs to read packed weights, by `quant_method`."""


def locate(name: str, weights: str | None = None, revision: str | None = None) -> Path:
    """Return the folder with a backbone's weights: inside the package, on disk, or in the hub's cache.

    Never contacts the hub, so it is equally fast offline.

    Raises:
        ConfigError: unknown name, or random weights, which have no folder.
        MissingError: it is in none of them, or incomplete; says what to do.
    """
    wanted = find(name).weights if weights is None else weights
    if wanted == RANDOM:
        raise ConfigError("--weights random: answers of random weights mean nothing; use them with profile only")
    if wanted.startswith("package:"):
        folder = Path(str(files("dpbench"))) / wanted.removeprefix("package:")
    elif Path(wanted).expanduser().is_dir() or wanted.startswith(("/", ".", "~")) or wanted.count("/") > 1:
        folder = Path(wanted).expanduser()
    else:
        folder = _cached(name, wanted, revision)
    absent = _absent(folder)
    if absent or (folder / _ADAPTER).is_file():
        found = f"lacks {', '.join(absent)}" if absent else f"has an {_ADAPTER}"
        remedy = _other_layout(name, folder) or _remedy(wanted, revision)
        raise MissingError(f"--backbone {name}: {folder} {found}; {remedy}")
    for file in _damaged(folder):
        raise MissingError(f"--backbone {name}: {folder / file} is damaged; {_remedy(wanted, revision)}")
    _check_config(name, folder)
    return folder


def _other_layout(name: str, folder: Path) -> str | None:
    """Return what to do about files in a layout that dpbench does not read, or None if there are no such files."""
    repository = find(name).weights
    if folder.is_file():
        return "it is a file, give a folder with a whole model"
    if (folder / _ADAPTER).is_file():
        return "it is an adapter: merge it into its base model and save that model (peft's merge_and_unload)"
    if "mm_vision_tower" in (_mapping(folder / "config.json") or {}):
        return f"it has the layout of LLaVA's own code; take the same model as transformers reads it: {repository}"
    for suffix in (".bin", ".gguf", ".pth", ".pt"):
        if any(folder.glob(f"*{suffix}")):
            remedy = f"take {repository}" if suffix == ".gguf" else f"save them as safetensors, or take {repository}"
            return f"its weights are {suffix} files, which dpbench does not read; {remedy}"
    return None


def _check_config(name: str, folder: Path) -> None:
    """Refuse the files of another model, and packed weights whose library is not installed.

    Raises:
        ConfigError: names the model, or the library.
    """
    config, expected = _mapping(folder / "config.json") or {}, _model_type(name)
    kind = config.get("model_type", expected)
    if kind != expected or "mm_vision_tower" in config:
        others = [other for other in FAMILIES if _model_type(other) == kind and other != "toy-llava"]
        remedy = f"use --backbone {others[0]}" if others and kind != expected else "dpbench has no backbone for it"
        raise ConfigError(
            f"--backbone {name}: {folder} holds a model of type {format_value(kind)}, not {expected!r}; "
            f"{_other_layout(name, folder) or remedy}"
        )
    packed = config.get("quantization_config")
    if packed is None:
        _check_numbers(name, folder)
    method = str(packed.get("quant_method")) if isinstance(packed, dict) else None
    for package in _UNPACKED_BY.get(method or "", ()):
        if find_spec(package) is None:
            raise ConfigError(
                f"--backbone {name}: the weights in {folder} are packed by {method} and need the package "
                f"{package.replace('_', '-')}; install it, or take unpacked weights such as {find(name).weights}"
            )


def _check_numbers(name: str, folder: Path) -> None:
    """Refuse weights that are no floating-point numbers, where the configuration does not say how to unpack them.

    Raises:
        ConfigError: names one.
    """
    from safetensors import safe_open

    for path in _weight_files(folder):
        with safe_open(path, "numpy") as weights:
            keys = [key for key in map(str, weights.keys()) if not key.endswith(HARMLESS)]
            kinds = {key: weights.get_slice(key).get_dtype() for key in keys}
        for key, kind in kinds.items():
            if kind not in _FLOATING:
                raise ConfigError(
                    f"--backbone {name}: {path} holds {key} as {kind}, and config.json has no quantization_config that "
                    f"says how to unpack it; take unpacked weights such as {find(name).weights}"
                )


def _weight_files(folder: Path) -> list[Path]:
    return [folder / _SINGLE] if (folder / _SINGLE).is_file() else sorted(folder.glob(_SHARDS))


def check_conversation(name: str, folder: Path) -> None:
    """Refuse a model whose decoder was trained with the conversation of another backbone of its kind.

    Raises:
        ConfigError: names that backbone.
    """
    text = (_mapping(folder / "config.json") or {}).get("text_config")
    decoder = text.get("model_type") if isinstance(text, dict) else None
    family = find(name)
    others = [other for other, its in FAMILIES.items() if its.module == family.module and its.decoder == decoder]
    if family.decoder and decoder != family.decoder and others:
        raise ConfigError(
            f"--backbone {name}: {folder} has a decoder of type {decoder!r}, and {name} asks as one of type "
            f"{family.decoder!r} expects it; use --backbone {others[0]}, or give --prompt"
        )


def _model_type(name: str) -> str:
    """Return the `model_type` of a backbone's configuration: the name of the module that serves it."""
    return find(name).module.split(":")[0]


def _damaged(folder: Path) -> Iterator[str]:
    """Yield the files of a model that cannot be whole: no JSON, or no safetensors by header and length."""
    from safetensors import SafetensorError, safe_open

    for file in (*_CONFIGS, *_PROCESSORS):
        if (folder / file).is_file() and _mapping(folder / file) is None:
            yield file
    for path in _weight_files(folder):
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError):
            yield path.name


def _mapping(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, or None if it does not exist or is not a mapping."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _absent(folder: Path) -> list[str]:
    """Return which files of a model are not in a folder, the shards its index names included."""
    absent = [file for file in _CONFIGS if not (folder / file).is_file()]
    if not any((folder / file).is_file() for file in _PROCESSORS):
        absent.append(_PROCESSORS[0])
    if (folder / _SINGLE).is_file():
        return absent
    if not (folder / _INDEX).is_file():
        return [*absent, _INDEX if any(folder.glob(_SHARDS)) else _SINGLE]
    named = (_mapping(folder / _INDEX) or {}).get("weight_map")
    shards = set(map(str, named.values())) if isinstance(named, dict) else set()
    counts = {int(match[1]) for shard in shards if (match := re.search(r"-of-(\d+)\.safetensors$", shard))}
    if not shards or (counts and len(shards) < max(counts)):
        return [*absent, f"a whole {_INDEX}"]
    return absent + sorted(shard for shard in shards if not (folder / shard).is_file())


def _remedy(wanted: str, revision: str | None) -> str:
    if wanted.count("/") == 1 and not wanted.startswith((".", "~", "/")):
        return f"fetch them with: hf download {wanted}{f' --revision {revision}' if revision else ''}"
    return "give a folder that has them"


def _cached(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except HFValidationError:
        raise MissingError(
            f"--backbone {name}: {repository} is neither a local folder nor a valid hub repository name; "
            "give a folder that has the weights"
        ) from None
    except LocalEntryNotFoundError:
        if commits := hub_cache.commits(repository, "model"):
            raise MissingError(
                f"--backbone {name}: the hub's cache has {repository} at {', '.join(commits)}, but not at "
                f"{revision or 'main'}; give --revision {commits[0]}, or {_remedy(repository, revision)}"
            ) from None
        raise MissingError(
            f"--backbone {name}: the weights {repository} (config.json, tokenizer.json, *.safetensors, ...) are "
            f"neither a local folder nor in the hub's cache {constants.HF_HUB_CACHE}; {_remedy(repository, revision)}"
        ) from None
