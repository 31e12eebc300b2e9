"""Load a backbone: weights and processor through transformers, with every setting that changes what the model reads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench.backbones.families import FAMILIES, RANDOM, VICUNA_V1, find
from dpbench.backbones.weights import HARMLESS, check_conversation, locate
from dpbench.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone


def load(
    name: str,
    *,
    weights: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    device_map: str | None = None,
    quantize: str | None = None,
    prompt: str | None = None,
    image_aspect: str | None = None,
    grids: str | None = None,
    pixels: tuple[int | None, int | None] = (None, None),
) -> Backbone:
    """Load a backbone's weights and processor.

    Args:
        name: as in `FAMILIES`.
        weights: a folder or hub repository in place of the default one, or "random".
        revision: commit, tag or branch of a hub repository.
        device: "cpu", "cuda", or with random weights "meta".
        dtype: "float32", "bfloat16" or "float16".
        attention: transformers' attention kernel.
        device_map: "auto" spreads the layers over all GPUs and the CPU.
        quantize: "4bit" or "8bit", by bitsandbytes.
        prompt: "template" or "vicuna_v1"; by default the family's own conversation.
        image_aspect: "pad" or "crop"; by default the family's.
        grids: whose choice of AnyRes grid, "transformers" or "llava"; by default that of transformers.
        pixels: how few and how many pixels an image has, where the tower takes any size; by default the family's.

    Raises:
        ConfigError: unknown name, files of another model, a library that is not installed, or a setting that random
            weights would ignore.
        MissingError: the weights are not there, or not all of them.
    """
    from dpbench.machine.device import fix_num_threads

    family = find(name)
    fix_num_threads()
    if weights == RANDOM:
        _refuse(revision=revision, device_map=device_map, quantize=quantize)
        model, processor = _random(name, device=device, dtype=dtype, attention=attention)
    else:
        folder, settings = locate(name, weights, revision), _settings(device_map, quantize, dtype)
        if prompt is None:
            check_conversation(name, folder)
        model, processor = _trained(name, folder, dtype=dtype, attention=attention, settings=settings)
        # transformers places packed weights itself.
        is_placed = bool(settings) or getattr(model, "hf_quantizer", None) is not None
        model = model if is_placed else model.to(device)
    module, class_name = family.module.split(":")
    backbone: Backbone = getattr(_module(module), class_name)(name, model, processor)
    backbone.system = VICUNA_V1 if (prompt or family.prompt) == "vicuna_v1" else ""
    if aspect := image_aspect or family.image_aspect:
        backbone.set_image_aspect(aspect)
    if grids:
        backbone.set_grids(grids)
    least, most = family.pixels or (None, None)
    backbone.bound_pixels(least if pixels[0] is None else pixels[0], most if pixels[1] is None else pixels[1])
    backbone.check_settings()
    return backbone


def _module(name: str) -> Any:
    return importlib.import_module(f"dpbench.backbones.{name}")


def _trained(name: str, folder: Path, *, dtype: str, attention: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    serve = _module(find(name).module.split(":")[0])
    disable_progress_bar()
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention, **settings}
    with _explain_refusals(name, folder):
        # What has another shape is reported, not raised without its name; `_check_keys` refuses it.
        settings |= {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, keys = serve.MODEL.from_pretrained(folder, **settings)
        processor = serve.PROCESSOR.from_pretrained(folder, local_files_only=True)
    _check_keys(name, folder, keys)
    return model, processor


@contextmanager
def _explain_refusals(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever transformers raises on files that it cannot use into one sentence.

    Raises:
        ConfigError: with the first line of the original error.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    refusals = (ImportError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*refusals, StrictDataclassError) as error:
        raise ConfigError(
            f"--backbone {name}: transformers cannot load {folder} ({_first_lines(error)}); give other weights with "
            "--weights, or mend that folder"
        ) from error


def _first_lines(error: Exception) -> str:
    """Return what an error says first; two lines if the first announces the second, and what it is if it says little.

    A KeyError, for one, says nothing but the key.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".:")
    is_short = isinstance(error, (LookupError, AttributeError, TypeError)) or not text
    return f"{type(error).__name__}: {text}" if is_short else text


def _check_keys(name: str, folder: Path, keys: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model, as transformers would draw the rest at random, or that it ignores.

    Raises:
        ConfigError: names weights of another shape than the configuration says.
        MissingError: names weights that are missing and those that the model does not know.
    """
    if others := sorted((str(key), tuple(found), tuple(wanted)) for key, found, wanted in keys["mismatched_keys"]):
        key, found, wanted = others[0]
        more = f", and {len(others) - 1} more weights have another shape too" if len(others) > 1 else ""
        raise ConfigError(
            f"--backbone {name}: in {folder} the weight {key} has the shape {found}, and by config.json it has "
            f"{wanted}{more}; give the config.json that belongs to the weights"
        )
    missing, unknown = (
        sorted(key for key in map(str, keys.get(kind, ())) if not key.endswith(HARMLESS))
        for kind in ("missing_keys", "unexpected_keys")
    )
    if not missing and not unknown:
        return
    parts = [f"lacks {_list_keys(missing)}, which would be random"] if missing else []
    parts += [f"has {_list_keys(unknown)}, which the model does not know"] if unknown else []
    is_adapter = any("lora_" in key or key.startswith("base_model.") for key in unknown)
    remedy = "merge the adapter into its base model first" if is_adapter else "give the weights of the whole model"
    raise MissingError(f"--backbone {name}: {folder} {' and '.join(parts)}; {remedy}")


def _list_keys(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{len(keys)} weight{'s' if len(keys) > 1 else ''} ({', '.join(keys[:3])}{more})"


def _settings(device_map: str | None, quantize: str | None, dtype: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs besides: where layers go and how weights are packed."""
    settings: dict[str, Any] = {"device_map": device_map} if device_map else {}
    if quantize is None:
        return settings
    if find_spec("bitsandbytes") is None:
        raise ConfigError("--quantize needs bitsandbytes; install it with: pip install 'diffprune-bench[quantize]'")
    import torch
    from transformers import BitsAndBytesConfig

    packed = BitsAndBytesConfig(
        load_in_4bit=quantize == "4bit",
        load_in_8bit=quantize == "8bit",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"device_map": "auto", **settings, "quantization_config": packed}


def _refuse(**settings: str | None) -> None:
    for setting, value in settings.items():
        if value is not None:
            flag = setting.replace("_", "-")
            raise ConfigError(f"--{flag} has no effect with --weights random; remove it")


def _random(name: str, *, device: str, dtype: str, attention: str) -> tuple[Any, Any]:
    architectures = _module("architectures")
    if name not in architectures.ARCHITECTURES:
        raise ConfigError(f"--weights random: {name} has trained weights inside the package; remove --weights")
    serve = _module(FAMILIES[name].module.split(":")[0])
    model = architectures.random_model(name, serve.MODEL, device=device, dtype=dtype, attention=attention)
    return model, architectures.ARCHITECTURES[name].processor()
