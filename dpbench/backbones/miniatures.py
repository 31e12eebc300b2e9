"""Miniatures of the three families: random weights, few and narrow layers, the hub's token ids and real processors.

For conformance checks and tests: every method must run on each of them, on any laptop, without a file.
"""

from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from dpbench.backbones import architectures
from dpbench.backbones.base import Backbone
from dpbench.backbones.llava import Llava
from dpbench.backbones.llava_next import LlavaNext
from dpbench.backbones.qwen2_5_vl import Qwen25VL

SIDE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def clip() -> CLIPVisionConfig:
    """16 patches: 56 pixels, patch 14."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        initializer_range=0.2,
    )


def config(family: str) -> Any:
    """Return a family's configuration, small: multi-head Llama, grouped-query Mistral, grouped-query Qwen."""
    if family == "llava":
        text = LlamaConfig(vocab_size=32064, pad_token_id=32001, **{**TEXT, "num_key_value_heads": 4})
        return LlavaConfig(vision_config=clip(), text_config=text, image_token_index=32000, image_seq_length=16)
    if family == "llava_next":
        mistral = MistralConfig(vocab_size=32064, pad_token_id=32001, sliding_window=None, **TEXT)
        return LlavaNextConfig(
            vision_config=clip(), text_config=mistral, image_token_index=32000, image_grid_pinpoints=PINPOINTS
        )
    full = architectures.qwen2_5_vl(hidden=32, intermediate=48, layers=4, heads=4, kv_heads=2).to_dict()
    full["vision_config"] |= {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    full["vision_config"] |= {"fullatt_block_indexes": [0, 2], "initializer_range": 0.2}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    text = {k: v for k, v in full["text_config"].items() if k != "layer_types"}
    full["text_config"] = text | {"rope_parameters": rope, "initializer_range": 0.2}
    return Qwen2_5_VLConfig(**{k: v for k, v in full.items() if k not in ("rope_parameters",)})


def processor(family: str) -> Any:
    """Return a family's processor at the tiny tower's size."""
    tokenizer = architectures.llava_processor().tokenizer
    crop = {"height": SIDE, "width": SIDE}
    shared = {
        "tokenizer": tokenizer,
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": architectures.LLAVA_CHAT,
    }
    if family == "llava":
        images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)
        return LlavaProcessor(image_processor=images, **shared)
    if family == "llava_next":
        images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop, image_grid_pinpoints=PINPOINTS)
        return LlavaNextProcessor(image_processor=images, **shared)
    return architectures.qwen_processor()


MODELS = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}
SERVED_BY: dict[str, Any] = {"llava": Llava, "llava_next": LlavaNext, "qwen2_5_vl": Qwen25VL}


def model(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Any:
    """Return a family's model of seeded random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return MODELS[family]._from_config(config(family), dtype=dtype, attn_implementation=attention).eval()


def backbone(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Backbone:
    """Return a family's backbone; Qwen's images are kept small."""
    made: Backbone = SERVED_BY[family](family, model(family, dtype, attention), processor(family))
    if family == "qwen2_5_vl":
        made.bound_pixels(28 * 28, 4 * 112 * 112)
    return made
