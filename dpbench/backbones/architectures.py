"""The published sizes of the backbones, to build them at full size without a network: random weights, no files.

For timing and FLOPs only; its answers are meaningless. Figures are those of the models' published
configurations. The stand-in processor preprocesses images as the real one does; a word or mark of text is one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
QWEN_PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
"""The fewest and most pixels of Qwen2.5-VL's published processor; transformers' own default stops at 1,280 tokens."""
VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
VICUNA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
MISTRAL_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}
QWEN_IDS = {
    "<unk>": 0,
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make a backbone's configuration and a processor, both without files."""

    config: Callable[[], Any]
    processor: Callable[[], Any]


def clip_large_336() -> CLIPVisionConfig:
    """Return CLIP ViT-L/14 at 336 pixels."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def llama(size: Mapping[str, int]) -> LlamaConfig:
    """Return a Vicuna decoder with the two tokens LLaVA adds, its vocabulary padded to 32,064."""
    return LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, pad_token_id=32001, **size)


def mistral() -> MistralConfig:
    """Return the Mistral-7B-Instruct-v0.2 decoder."""
    return MistralConfig(
        vocab_size=32064,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
        sliding_window=None,
        pad_token_id=32001,
        **MISTRAL_7B,
    )


def llava(text: Any) -> LlavaConfig:
    """Return LLaVA-1.5 around a decoder."""
    return LlavaConfig(vision_config=clip_large_336(), text_config=text, image_token_index=32000, image_seq_length=576)


def llava_next(text: Any) -> LlavaNextConfig:
    """Return LLaVA-NeXT around a decoder."""
    return LlavaNextConfig(
        vision_config=clip_large_336(), text_config=text, image_token_index=32000, image_grid_pinpoints=PINPOINTS
    )


def qwen2_5_vl(
    *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vision_intermediate: int = 3420
) -> Qwen2_5_VLConfig:
    """Return Qwen2.5-VL of a size; only the smallest ties its embeddings."""
    smallest = hidden == 2048
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_intermediate,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    text = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 151936 if smallest else 152064,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": smallest,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
    }
    special = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=smallest, **special)


def word_tokenizer(ids: Mapping[str, int], *, pad: str, eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that makes one token of each word or mark, all but the special ones unknown."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\n"), behavior="removed", invert=True)
    tokenizer.add_special_tokens(list(ids))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=pad, eos_token=eos, bos_token=bos, padding_side="left"
    )


def llava_processor() -> LlavaProcessor:
    """Return LLaVA-1.5's preprocessing: shorter side to 336, centre crop."""
    square = {"height": 336, "width": 336}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=square),
        tokenizer=_llava_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )


def llava_next_processor() -> LlavaNextProcessor:
    """Return LLaVA-NeXT's preprocessing: a base view and AnyRes tiles of 336."""
    square = {"height": 336, "width": 336}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 336}, crop_size=square, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=_llava_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )


def _llava_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(LLAVA_IDS, pad="<pad>", eos="</s>", bos="<s>")


def qwen_processor() -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's preprocessing: native resolution in steps of 28 pixels."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=QWEN_PIXELS),
        tokenizer=word_tokenizer(QWEN_IDS, pad="<|endoftext|>", eos="<|im_end|>"),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=QWEN_CHAT,
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "llava-1.5": Architecture(lambda: llava(llama(VICUNA_7B)), llava_processor),
    "llava-1.5-13b": Architecture(lambda: llava(llama(VICUNA_13B)), llava_processor),
    "llava-next": Architecture(lambda: llava_next(llama(VICUNA_7B)), llava_next_processor),
    "llava-next-mistral": Architecture(lambda: llava_next(mistral()), llava_next_processor),
    "llava-next-13b": Architecture(lambda: llava_next(llama(VICUNA_13B)), llava_next_processor),
    "qwen2.5-vl-3b": Architecture(
        lambda: qwen2_5_vl(hidden=2048, intermediate=11008, layers=36, heads=16, kv_heads=2), qwen_processor
    ),
    "qwen2.5-vl": Architecture(
        lambda: qwen2_5_vl(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4), qwen_processor
    ),
    "qwen2.5-vl-32b": Architecture(
        lambda: qwen2_5_vl(hidden=5120, intermediate=27648, layers=64, heads=40, kv_heads=8, vision_intermediate=3456),
        qwen_processor,
    ),
}


def random_model(name: str, model_class: Any, *, device: str, dtype: str, attention: str, seed: int = 0) -> Any:
    """Return a full-size model of random weights on a device; "meta" holds shapes only.

    Args:
        name: a key of ARCHITECTURES.
        model_class: transformers' class for it.
        device: where the weights are made.
        dtype: "float32", "bfloat16" or "float16".
        attention: transformers' attention kernel.
        seed: of the weights.
    """
    config = ARCHITECTURES[name].config()
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(cuda), torch.device(device):
        torch.manual_seed(seed)
        return model_class._from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
