"""Weights that are not whole, or another model's, are one sentence and never a model with random parts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from places import TOY_DATA
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpbench import backbones
from dpbench.backbones import miniatures
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.errors import ConfigError, MissingError
from dpbench.method import Method
from dpbench.tasks import lmms_eval_adapter

FAMILIES = {"llava-1.5": "llava", "llava-next-mistral": "llava_next", "qwen2.5-vl": "qwen2_5_vl"}
Rename = Callable[[str, Tensor], tuple[str, Tensor]]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save a miniature as the hub has it; `rename` maps its weights, further arguments change keys of JSON files."""

    def save(name: str, rename: Rename | None = None, **edits: dict[str, Any]) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        miniatures.model(FAMILIES[name], torch.float32).save_pretrained(folder)
        miniatures.processor(FAMILIES[name]).save_pretrained(folder)
        if rename:
            path = folder / "model.safetensors"
            pairs = (rename(key, value) for key, value in load_file(path).items())
            save_file({key: value.contiguous() for key, value in pairs if key}, path, {"format": "pt"})
        for file, keys in edits.items():
            path = folder / f"{file}.json"
            path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | keys))
        return folder

    return save


def refusal(name: str, folder: Path, **settings: Any) -> str:
    with pytest.raises((ConfigError, MissingError)) as error:
        backbones.load(name, weights=str(folder), **settings)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--backbone {name}: ") or "vision_feature_layer" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_under_other_names_are_refused_and_both_sides_named(name: str, save: Callable[..., Path]) -> None:
    text = refusal(name, save(name, lambda key, value: (f"base_model.model.{key}", value)))
    assert "which would be random" in text
    assert "base_model.model." in text
    assert text.endswith("merge the adapter into its base model first")


@pytest.mark.parametrize(
    "lost", ["multi_modal_projector.linear_1.weight", "lm_head.weight", "vision_tower.embeddings.class_embedding"]
)
def test_a_single_weight_that_is_missing_is_named(lost: str, save: Callable[..., Path]) -> None:
    text = refusal("llava-1.5", save("llava-1.5", lambda key, value: ("" if key.endswith(lost) else key, value)))
    assert "lacks 1 weight (" in text
    assert lost.split(".")[-2] in text


def test_weights_that_the_model_does_not_know_are_refused_but_for_harmless_ones(save: Callable[..., Path]) -> None:
    class_embedding = "class_embedding"
    folder = save("llava-1.5")
    weights = load_file(folder / "model.safetensors")
    known = next(value for key, value in weights.items() if key.endswith(class_embedding))
    for extra, is_harmless in (
        ("model.vision_tower.embeddings.position_ids", True),
        ("model.language_model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.language_model.layers.0.self_attn.q_proj.lora_A.weight", False),
    ):
        save_file({**weights, extra: known.clone()}, folder / "model.safetensors", {"format": "pt"})
        if is_harmless:
            backbones.load("llava-1.5", weights=str(folder))
        else:
            assert "which the model does not know; merge the adapter" in refusal("llava-1.5", folder)


@pytest.mark.parametrize(
    ("name", "file", "keys", "message"),
    [
        ("llava-1.5", "config", {"model_type": "llava_next"}, "not 'llava'; use --backbone llava-next"),
        ("qwen2.5-vl", "config", {"model_type": "qwen3_vl"}, "dpbench has no backbone for it"),
        ("llava-1.5", "config", {"mm_vision_tower": "openai/clip"}, "the layout of LLaVA's own code"),
        ("llava-1.5", "config", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        ("llava-next-mistral", "config", {"vision_feature_select_strategy": "full"}, "strategy = 'full'"),
        ("llava-1.5", "config", {"vision_feature_layer": [-2]}, r"vision_feature_layer = \[-2\]"),
        ("llava-1.5", "config", {"vision_feature_layer": 0}, "vision_feature_layer = 0"),
        ("llava-1.5", "config", {"image_token_id": 5, "image_token_index": 5}, "marks images with the token 5"),
        ("llava-1.5", "config", {"text_config": {"model_type": "llama", "hidden_size": [32]}}, "cannot load"),
        ("llava-next-mistral", "config", {"image_grid_pinpoints": []}, r"image_grid_pinpoints = \[\], which must be"),
        ("llava-next-mistral", "config", {"image_grid_pinpoints": [[60, 112]]}, "whole views of 56 pixels"),
        (
            "llava-1.5",
            "processor_config",
            {"vision_feature_select_strategy": "full"},
            "of the processor = 'full'",
        ),
        ("llava-next-mistral", "processor_config", {"patch_size": 7}, "patch_size of the processor = 7"),
        ("llava-1.5", "config", {"quantization_config": []}, "cannot load .*AttributeError"),
        ("llava-1.5", "config", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "need the package gptq"),
        ("llava-1.5", "config", {"quantization_config": {"quant_method": "bitsandbytes"}}, "need the package bitsandb"),
    ],
)
def test_what_dpbench_would_read_otherwise_is_refused_by_name(
    name: str, file: str, keys: dict[str, Any], message: str, save: Callable[..., Path]
) -> None:
    folder = save(name, **{file: keys})
    with pytest.raises((ConfigError, MissingError), match=message) as error:
        backbones.load(name, weights=str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("llava-1.5", {"crop_size": {"height": 28, "width": 28}}, "crop_size.height = 28"),
        ("llava-1.5", {"size": {"shortest_edge": 28}}, "size.shortest_edge = 28"),
        ("llava-next-mistral", {"image_grid_pinpoints": [[56, 112]]}, "image_grid_pinpoints of the processor"),
        ("qwen2.5-vl", {"merge_size": 1}, "merge_size of the processor = 1"),
        ("qwen2.5-vl", {"do_resize": False}, "its processor Qwen2VLImageProcessor cannot read a picture (RuntimeError"),
        ("llava-1.5", {"do_resize": False}, "do_resize = False"),
        ("llava-1.5", {"do_center_crop": False}, "do_center_crop = False"),
        ("llava-next-mistral", {"image_processor_type": "CLIPImageProcessor"}, "cannot read a picture (KeyError"),
    ],
)
def test_a_processor_that_reads_images_in_another_way_is_refused(
    name: str, keys: dict[str, Any], message: str, save: Callable[..., Path]
) -> None:
    folder = save(name)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"] |= keys
    path.write_text(json.dumps(config))
    assert message in refusal(name, folder)


def test_next_without_a_chat_template_names_the_flag(save: Callable[..., Path]) -> None:
    folder = save("llava-next-mistral")
    (folder / "chat_template.jinja").unlink()
    assert "no chat template; give --prompt vicuna_v1" in refusal("llava-next-mistral", folder)
    backbones.load("llava-next", weights=str(folder), prompt="vicuna_v1")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "it is an adapter: merge it into its base model"),
        ("pytorch_model.bin", "its weights are .bin files"),
        ("llava-q4.gguf", "its weights are .gguf files, which dpbench does not read; take llava-hf/llava-1.5-7b-hf"),
        ("model.pth", "its weights are .pth files"),
    ],
)
def test_files_in_another_layout_say_what_to_do(file: str, message: str, save: Callable[..., Path]) -> None:
    folder = save("llava-1.5")
    (folder / "model.safetensors").rename(folder / file)
    assert message in refusal("llava-1.5", folder)


@pytest.mark.parametrize(
    "keys",
    [{"num_beams": 3}, {"min_new_tokens": 6}, {"repetition_penalty": 3.0}, {"do_sample": True, "temperature": 9.0},
     {"no_repeat_ngram_size": 1}, {"bad_words_ids": [[5]]}, {"max_new_tokens": 1}, {"forced_eos_token_id": 2},
     {"suppress_tokens": [2]}, {"num_return_sequences": 2, "num_beams": 2}],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_decoding_is_greedy_whatever_the_generation_config_says(keys: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(TOY_DATA.parent / "weights", tmp_path / "toy")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    built = lmms_eval_adapter.build("textvqa", TOY_DATA, limit=4)
    answers = []
    for weights in (None, str(folder)):
        model = backbones.load("toy-llava", weights=weights)
        for request in built.requests:
            prompt = model.prompt(built.images(request), request.text)
            spliced = pruned_prompt.splice(
                model, Method(), prompt, model.encode(prompt.pixels), [torch.Generator()], decision.Rule()
            )
            answers += [reply.text for reply in forward.generate(model, Method(), [spliced], max_new_tokens=8)]
    assert answers[:4] == answers[4:]
    assert all(answers)


def test_a_whole_model_beside_an_adapter_is_not_loaded_without_it(save: Callable[..., Path]) -> None:
    folder = save("llava-1.5", adapter_config={"peft_type": "LORA"})
    assert "has an adapter_config.json; it is an adapter: merge it" in refusal("llava-1.5", folder)


def test_weights_that_are_packed_without_a_word_are_refused(save: Callable[..., Path]) -> None:
    """transformers would read the packed integers as if they were the numbers."""

    def pack(key: str, value: Tensor) -> tuple[str, Tensor]:
        return key, value.to(torch.int8) if key.endswith("layers.0.self_attn.q_proj.weight") else value

    text = refusal("llava-1.5", save("llava-1.5", pack))
    assert "q_proj.weight as I8, and config.json has no quantization_config" in text


def test_the_conversation_of_another_decoder_is_refused_and_its_backbone_named(save: Callable[..., Path]) -> None:
    folder = save("llava-next-mistral")
    text = refusal("llava-next", folder)
    assert "a decoder of type 'mistral'" in text
    assert "use --backbone llava-next-mistral, or give --prompt" in text
    assert backbones.load("llava-next-mistral", weights=str(folder)).system == ""
    assert backbones.load("llava-next", weights=str(folder), prompt="template").system == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for", "TemplateSyntaxError"),
        ("{{ raise_exception('no images') }}", "TemplateError: no images"),
        ("<image> Describe this.", "it makes '<image> Describe this.' of the question 'What is this?'"),
        ("{{ messages[0]['content'] + 'x' }}", "TypeError"),
        ("{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}", "does not contain once"),
    ],
)
def test_a_chat_template_that_makes_no_conversation_is_refused(
    template: str, reason: str, save: Callable[..., Path]
) -> None:
    folder = save("llava-next-mistral")
    (folder / "chat_template.jinja").write_text(template)
    assert reason in refusal("llava-next-mistral", folder)


def test_a_model_without_an_end_token_is_refused(save: Callable[..., Path]) -> None:
    folder = save("llava-1.5", generation_config={"eos_token_id": None}, tokenizer_config={"eos_token": None})
    assert "names the token that ends an answer" in refusal("llava-1.5", folder)


def test_a_padding_token_outside_the_vocabulary_is_one_sentence(save: Callable[..., Path]) -> None:
    folder = save("qwen2.5-vl")
    config = json.loads((folder / "config.json").read_text())
    (config.get("text_config") or config)["pad_token_id"] = 10**6
    (folder / "config.json").write_text(json.dumps(config))
    assert f"transformers cannot load {folder}" in refusal("qwen2.5-vl", folder)


def save_in_shards(folder: Path, **index: Any) -> None:
    """Split a model's file in two, with an index whose keys may be changed."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(weights)}
    for shard in set(names.values()):
        save_file(
            {key: value for key, value in weights.items() if names[key] == shard}, folder / shard, {"format": "pt"}
        )
    written = {"metadata": {}, "weight_map": names} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(written))


def test_a_model_in_shards_is_whole_or_refused(save: Callable[..., Path]) -> None:
    whole, one_of_two, empty = save("llava-1.5"), save("llava-1.5"), save("llava-1.5")
    save_in_shards(whole)
    model = backbones.load("llava-1.5", weights=str(whole)).model
    single = backbones.load("llava-1.5", weights=str(save("llava-1.5"))).model
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), single.parameters(), strict=True))
    save_in_shards(one_of_two, weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    save_in_shards(empty, weight_map={})
    for folder in (one_of_two, empty):
        assert "lacks a whole model.safetensors.index.json" in refusal("llava-1.5", folder)


def legacy(key: str, value: Tensor) -> tuple[str, Tensor]:
    """Rename a saved weight as checkpoints of 2024 have it."""
    for ours, theirs in (("vision_tower.", "vision_tower.vision_model."), ("model.visual", "visual")):
        key = key.replace(ours, theirs) if theirs not in key else key
    return key, value


@pytest.mark.parametrize("name", FAMILIES)
def test_names_that_transformers_maps_itself_load_the_same_weights(name: str, save: Callable[..., Path]) -> None:
    models = [backbones.load(name, weights=str(save(name, rename))).model for rename in (None, legacy)]
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in models), strict=True))


def test_a_tied_head_need_not_be_in_the_file(save: Callable[..., Path]) -> None:
    tied = {"tie_word_embeddings": True}
    folder = save("qwen2.5-vl", lambda key, value: ("" if key == "lm_head.weight" else key, value), config=tied)
    model = backbones.load("qwen2.5-vl", weights=str(folder)).model
    assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llava-1.5", {"rescale_factor": 1 / 127.5}),
        ("llava-1.5", {"do_rescale": False}),
        ("llava-1.5", {"do_normalize": False}),
        ("llava-1.5", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]}),
        ("llava-1.5", {"resample": 0}),
        ("llava-next-mistral", {"do_rescale": False}),
        ("llava-next-mistral", {"do_normalize": False}),
    ],
    ids=str,
)
def test_smaller_pictures_are_scaled_as_the_processor_scales_its_own(
    name: str, keys: dict[str, Any], save: Callable[..., Path]
) -> None:
    """`downsample` resizes first, and then leaves the numbers to the processor: at its own size nothing differs."""
    folder = save(name)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"] |= keys
    path.write_text(json.dumps(config))
    settings = {"image_aspect": "crop"} if name == "llava-1.5" else {}
    model = backbones.load(name, weights=str(folder), **settings)
    noise = torch.randint(0, 256, (56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    (own,), (smaller,) = model.preprocess([image]), model.preprocess([image], [(4, 4)])
    torch.testing.assert_close(smaller.values.view(-1, 3, 56, 56)[0], own.values.view(-1, 3, 56, 56)[0])


@pytest.mark.parametrize(
    ("name", "part", "keys", "shapes"),
    [
        ("llava-1.5", "text_config", {"vocab_size": 32002}, "(32064, 32), and by config.json it has (32002, 32)"),
        ("llava-next-mistral", "vision_config", {"patch_size": 7}, "(32, 3, 14, 14), and by config.json it has"),
        ("qwen2.5-vl", "vision_config", {"spatial_merge_size": 4}, "and by config.json it has"),
    ],
)
def test_weights_of_another_shape_are_named_with_both_shapes(
    name: str, part: str, keys: dict[str, Any], shapes: str, save: Callable[..., Path]
) -> None:
    folder = save(name)
    config = json.loads((folder / "config.json").read_text())
    config[part] |= keys
    (folder / "config.json").write_text(json.dumps(config))
    assert shapes in refusal(name, folder)
