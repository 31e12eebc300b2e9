"""Tiny random models on the real processor, so that every test runs on a CPU without network."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch loads: every core has a worker, more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import TOY_WEIGHTS
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from dpbench.backbones.llava import Llava


def tiny_model(processor: LlavaProcessor, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=96, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=144,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(dtype).eval()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the report's cached intervals out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return LlavaProcessor.from_pretrained(TOY_WEIGHTS)


@pytest.fixture(scope="session")
def tiny(processor: LlavaProcessor) -> Llava:
    """A tiny random LLaVA in float64, so that equalities hold to rounding."""
    return Llava("tiny", tiny_model(processor, torch.float64), processor)


@pytest.fixture(scope="session")
def tiny_folder(processor: LlavaProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(processor, torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image.Image]:
    def make(seed: int) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run on one thread: the tensors are small, and two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
