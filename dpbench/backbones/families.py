"""The backbones by name: what each is, and how it is read by default. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dpbench.errors import ConfigError, did_you_mean

RANDOM = "random"
"""In place of weights: a full-size model of random ones, for timing and FLOPs."""
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system sentence of the `vicuna_v1` conversation, which LLaVA on Vicuna was trained and evaluated with."""
LMMS_EVAL_PIXELS = (256 * 28 * 28, 1_605_632)
"""Fewest and most pixels of an image under lmms-eval's Qwen2.5-VL; the checkpoint's own file starts at 4 tokens."""
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
        decoder: the `model_type` of its text model, where its conversation is that model's.
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
    decoder: str | None = None

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
        decoder="llama" if prompt == "vicuna_v1" else "mistral",
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
