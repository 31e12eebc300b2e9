"""The backbones by name, and how to load one. Listing them imports no torch."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpbench.errors import ConfigError, MissingError, did_you_mean

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

RANDOM = "random"
"""In place of weights: a full-size model of random ones, for timing and FLOPs."""
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system sentence of the `vicuna_v1` conversation, which LLaVA on Vicuna was trained and evaluated with."""
LMMS_EVAL_PIXELS = (256 * 28 * 28, 1_605_632)
"""Fewest and most pixels of an image under lmms-eval's Qwen2.5-VL; the checkpoint's own file starts at 4 tokens."""
_CONFIGS = ("config.json", "tokenizer.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARDS = "model-*-of-*.safetensors"
_CLIP_SIGNALS = "CLS attention (also of the first layer), CLS row, keys"


@dataclass(frozen=True, slots=True)
class Family:
    """Facts about a backbone, available without loading it.

    Attributes:
        summary: what it is, in a few words.
        module: the module that serves it, in `dpbench.backbones`, and its class.
        weights: default weights: a hub repository, or `package:` and a folder inside the package.
        parameters: how many, in words.
        visual: how many visual tokens, in words.
        signals: what methods can read of the tower besides its output.
        num_visual: visual tokens of every image, or None where it follows the image's size.
        tiles: the image is cut into AnyRes tiles.
        prompt: its conversation: "template" is the processor's chat template, "vicuna_v1" has a system sentence before.
        ocr: its published TextVQA score was read with OCR tokens in the prompt (LLaVA-1.5: 58.2; LLaVA-NeXT: without).
        image_aspect: how an image that is not square becomes square: "pad" with the mean colour, as LLaVA-1.5 was
            trained and evaluated, or "crop" to its middle; None where the tower takes other shapes.
        pixels: how few and how many pixels an image is resized to, where the tower takes any size.
        paper_table: the table of the DiffPrune paper that measures its kind; None if there is none.
    """

    summary: str
    module: str
    weights: str
    parameters: str
    visual: str
    signals: str = _CLIP_SIGNALS
    num_visual: int | None = None
    tiles: bool = False
    prompt: Literal["template", "vicuna_v1"] = "template"
    ocr: bool = False
    image_aspect: Literal["pad", "crop"] | None = None
    pixels: tuple[int, int] | None = None
    paper_table: int | None = None

    @property
    def native_resolution(self) -> bool:
        """Return True if the number of visual tokens follows the image's size, within pixel bounds."""
        return self.num_visual is None and not self.tiles


def _llava(size: str, parameters: str) -> Family:
    return Family(
        f"LLaVA-1.5-{size}",
        "llava:Llava",
        f"llava-hf/llava-1.5-{size.lower()}-hf",
        parameters,
        "576",
        num_visual=576,
        prompt="vicuna_v1",
        ocr=True,
        image_aspect="pad",
        paper_table=1,
    )


def _next(
    decoder: str, weights: str, parameters: str, prompt: Literal["template", "vicuna_v1"] = "vicuna_v1"
) -> Family:
    return Family(
        f"LLaVA-NeXT, {decoder}",
        "llava_next:LlavaNext",
        weights,
        parameters,
        "up to 2,880 in 5 views",
        tiles=True,
        prompt=prompt,
        paper_table=2,
    )


def _qwen(size: str, parameters: str) -> Family:
    weights = f"Qwen/Qwen2.5-VL-{size}-Instruct"
    return Family(
        f"Qwen2.5-VL-{size}",
        "qwen2_5_vl:Qwen25VL",
        weights,
        parameters,
        "one per 28x28 pixels",
        "attention received, keys",
        pixels=LMMS_EVAL_PIXELS,
        paper_table=3,
    )


FAMILIES: Mapping[str, Family] = {
    "toy-llava": Family(
        "LLaVA in miniature, trained, inside the package",
        "llava:Llava",
        "package:toy/weights",
        "3.4 M",
        "144",
        num_visual=144,
        image_aspect="pad",
    ),
    "llava-1.5": _llava("7B", "7.1 B"),
    "llava-1.5-13b": _llava("13B", "13.4 B"),
    "llava-next": _next("Vicuna-7B", "llava-hf/llava-v1.6-vicuna-7b-hf", "7.1 B"),
    "llava-next-13b": _next("Vicuna-13B", "llava-hf/llava-v1.6-vicuna-13b-hf", "13.4 B"),
    "llava-next-mistral": _next("Mistral-7B", "llava-hf/llava-v1.6-mistral-7b-hf", "7.6 B", "template"),
    "qwen2.5-vl": _qwen("7B", "8.3 B"),
    "qwen2.5-vl-3b": _qwen("3B", "3.8 B"),
    "qwen2.5-vl-32b": _qwen("32B", "33.5 B"),
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
    if absent:
        raise MissingError(f"--backbone {name}: {folder} lacks {', '.join(absent)}; {_remedy(wanted, revision)}")
    for file in _damaged(folder):
        raise MissingError(f"--backbone {name}: {folder / file} is damaged; {_remedy(wanted, revision)}")
    return folder


def _damaged(folder: Path) -> Iterator[str]:
    """Yield the files of a model that cannot be whole: no JSON, or no safetensors by header and length."""
    from safetensors import SafetensorError, safe_open

    for file in (*_CONFIGS, *_PROCESSORS):
        if (folder / file).is_file() and _mapping(folder / file) is None:
            yield file
    for path in [folder / _SINGLE] if (folder / _SINGLE).is_file() else sorted(folder.glob(_SHARDS)):
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError):
            yield path.name


def _mapping(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, or None if it is not a mapping."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
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
    shards = set(map(str, named.values())) if isinstance(named, dict) else {f"a whole {_INDEX}"}
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
        raise MissingError(
            f"--backbone {name}: the weights {repository} (config.json, tokenizer.json, *.safetensors, ...) are "
            f"neither a local folder nor in the hub's cache {constants.HF_HUB_CACHE}; {_remedy(repository, revision)}"
        ) from None


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
        ConfigError: unknown name, a library that is not installed, or a setting that random weights would ignore.
        MissingError: the weights are not there.
    """
    from dpbench.machine.device import fix_num_threads

    family = find(name)
    fix_num_threads()
    if weights == RANDOM:
        _refuse(revision=revision, device_map=device_map, quantize=quantize)
        model, processor = _random(name, device=device, dtype=dtype, attention=attention)
    else:
        folder, settings = locate(name, weights, revision), _settings(device_map, quantize, dtype)
        model, processor = _trained(family, folder, dtype=dtype, attention=attention, settings=settings)
        model = model if settings else model.to(device)
    module, class_name = family.module.split(":")
    backbone: Backbone = getattr(_module(module), class_name)(name, model, processor)
    backbone.system = VICUNA_V1 if (prompt or family.prompt) == "vicuna_v1" else ""
    if aspect := image_aspect or family.image_aspect:
        backbone.set_image_aspect(aspect)
    if grids:
        backbone.set_grids(grids)
    least, most = family.pixels or (None, None)
    backbone.bound_pixels(least if pixels[0] is None else pixels[0], most if pixels[1] is None else pixels[1])
    return backbone


def _module(name: str) -> Any:
    return importlib.import_module(f"dpbench.backbones.{name}")


def _trained(family: Family, folder: Path, *, dtype: str, attention: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    serve = _module(family.module.split(":")[0])
    disable_progress_bar()
    model = serve.MODEL.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention, local_files_only=True, **settings
    )
    return model, serve.PROCESSOR.from_pretrained(folder, local_files_only=True)


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
    from dpbench.backbones import architectures

    if name not in architectures.ARCHITECTURES:
        raise ConfigError(f"--weights random: {name} has trained weights inside the package; remove --weights")
    serve = _module(FAMILIES[name].module.split(":")[0])
    model = architectures.random_model(name, serve.MODEL, device=device, dtype=dtype, attention=attention)
    return model, architectures.ARCHITECTURES[name].processor()
