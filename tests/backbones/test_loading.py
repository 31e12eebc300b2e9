"""Loading: in the hub's own file layout the real loaders execute, and what is missing is one sentence."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import TOY_DATA
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dpbench import backbones
from dpbench.backbones import architectures, loading
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone
from dpbench.backbones.conversation import ConversationTokenizer
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import ConfigError, MissingError
from dpbench.evaluation import runner
from dpbench.manifest.reading import load_manifest, make_manifest
from dpbench.method import Method
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record
from dpbench.tasks import TASKS

NAMES = {
    "llava-1.5": "llava",
    "llava-next-mistral": "llava_next",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen2.5-vl-3b": "qwen2_5_vl",
}
"""Families of the fixtures; the smallest Qwen ties its embeddings, so that no shard holds the LM head."""
QUESTION = "Is there a red circle in the image?\nAnswer the question using a single word or phrase."
TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)
CLIP = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
NORMALISED = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
QWEN_MARKS = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start"),
    *("quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
)
QWEN_SPECIALS = [f"<|{mark}|>" for mark in QWEN_MARKS]
DECODERS = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def added_token(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, "special": True, **flags}


def bpe(pieces: list[str], specials: Mapping[str, int], **parts: Any) -> dict[str, Any]:
    """Return a tokenizer.json without merges, its vocabulary filled up to the first special token behind it."""
    size = min(number for number in specials.values() if number >= len(pieces))
    vocab = {piece: i for i, piece in enumerate([*pieces, *(f"▁▁{n}" for n in range(size - len(pieces)))])}
    model = {"type": "BPE", "dropout": None, "vocab": vocab, "merges": []}
    added = [{"id": number, **added_token(content)} for content, number in specials.items()]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts} | {
        "model": model | parts["model"]
    }


def write_llama_tokenizer(folder: Path, processor: str) -> None:
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    start, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {"single": [start, text], "pair": [start, text, start, {"Sequence": {"id": "B", "type_id": 1}}]}
    tokenizer = bpe(
        pieces,
        specials,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        pre_tokenizer=None,
        post_processor={"type": "TemplateProcessing", **template}
        | {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        decoder={"type": "Sequence", "decoders": DECODERS},
        model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": {str(number): added_token(content) for content, number in specials.items()},
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "processor_class": processor,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "trust_remote_code": False,
        "use_default_system_prompt": False,
    }
    write(
        folder,
        {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": config | named,
            "special_tokens_map.json": {name: added_token(content) for name, content in named.items()},
            "added_tokens.json": {"<image>": 32000, "<pad>": 32001},
        },
    )


def write_qwen_tokenizer(folder: Path) -> None:
    specials = {content: 151643 + n for n, content in enumerate(QWEN_SPECIALS)}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    pieces = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"}, "behavior": "Isolated"}
    by_byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = bpe(
        pieces,
        specials,
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{**split, "invert": False}, by_byte]},
        post_processor=by_byte,
        decoder=by_byte,
        model={"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False},
    )
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): added_token(content) for content, number in specials.items()},
        "additional_special_tokens": QWEN_SPECIALS[1:],
        "bos_token": None,
        "chat_template": architectures.QWEN_CHAT,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    vocab = tokenizer["model"]["vocab"]
    write(folder, {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "vocab.json": vocab})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def picked(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def write_llava_files(folder: Path, family: str, config: Any) -> None:
    """Everything but the weights, as `llava-hf` has it: both files of the processor, an older transformers' config."""
    kind = {"llava": "Llava", "llava_next": "LlavaNext"}[family]
    text = picked(config.text_config, TEXT) | {"model_type": config.text_config.model_type, "torch_dtype": "float16"}
    square = {"height": tinies.SIDE, "width": tinies.SIDE}
    images = {
        "crop_size": square,
        **dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
        **NORMALISED,
        "image_processor_type": {"llava": "CLIPImageProcessor", "llava_next": "LlavaNextImageProcessor"}[family],
        "processor_class": f"{kind}Processor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": tinies.SIDE},
    }
    tiles = {"image_grid_pinpoints": tinies.PINPOINTS} if family == "llava_next" else {}
    images |= tiles and {"aspect_ratio_setting": "anyres", "do_pad": True, **tiles}
    top = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": family,
        "projector_hidden_act": "gelu",
        "text_config": text | {"rope_theta": config.text_config.rope_parameters["rope_theta"], "sliding_window": None},
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "vision_config": picked(config.vision_config, CLIP)
        | {"model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **(tiles and {"use_image_newline_parameter": True, **tiles}),
    }
    processor = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14}
    processor |= {"processor_class": f"{kind}Processor", "vision_feature_select_strategy": "default"}
    ends = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001}
    write(
        folder,
        {
            "config.json": top | {"pad_token_id": 32001, "vocab_size": 32064},
            "generation_config.json": ends | {"transformers_version": "4.39.0.dev0"},
            "preprocessor_config.json": images,
            "processor_config.json": processor,
            "chat_template.json": {"chat_template": architectures.LLAVA_CHAT},
        },
    )
    write_llama_tokenizer(folder, f"{kind}Processor")


def write_qwen_files(folder: Path, config: Any) -> None:
    """Everything but the weights, as `Qwen` has it: a flat config.json, no processor_config.json, pixel bounds."""
    vision = config.vision_config
    ends = {"bos_token_id": 151643, "eos_token_id": 151645}
    write(
        folder,
        {
            "config.json": {
                "architectures": ["Qwen2_5_VLForConditionalGeneration"],
                "attention_dropout": 0.0,
                **ends,
                "vision_start_token_id": 151652,
                "vision_end_token_id": 151653,
                "vision_token_id": 151654,
                "image_token_id": 151655,
                "video_token_id": 151656,
                "hidden_act": "silu",
                "initializer_range": 0.02,
                "max_position_embeddings": 128000,
                "max_window_layers": 28,
                "model_type": "qwen2_5_vl",
                **picked(config.text_config, TEXT),
                "rope_theta": 1000000.0,
                "sliding_window": 32768,
                "tie_word_embeddings": config.tie_word_embeddings,
                "torch_dtype": "bfloat16",
                "transformers_version": "4.41.2",
                "use_cache": True,
                "use_sliding_window": False,
                "vision_config": picked(vision, ("depth", "hidden_size", "intermediate_size", "num_heads"))
                | {"hidden_act": "silu", "in_chans": 3, "out_hidden_size": config.text_config.hidden_size}
                | {"patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112}
                | {"fullatt_block_indexes": vision.fullatt_block_indexes, "tokens_per_second": 2}
                | {"temporal_patch_size": 2},
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            },
            "generation_config.json": {
                **ends,
                "pad_token_id": 151643,
                "do_sample": True,
                "eos_token_id": [151645, 151643],
                "repetition_penalty": 1.05,
                "temperature": 0.000001,
                "transformers_version": "4.49.0",
            },
            "preprocessor_config.json": {
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                **NORMALISED,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            },
            "chat_template.json": {"chat_template": architectures.QWEN_CHAT},
        },
    )
    write_qwen_tokenizer(folder)


def write_shards(folder: Path, model: Any) -> None:
    """Shards and their index, the tower's weights under the hub's names."""
    model.save_pretrained(folder, max_shard_size="4MB")

    def hubs(name: str) -> str:
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)

    for shard in folder.glob("*.safetensors"):
        save_file({hubs(name): value for name, value in load_file(shard).items()}, shard, {"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {hubs(name): shard for name, shard in index["weight_map"].items()}
    path.write_text(json.dumps(index))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Write a family's folder at most once; returns it with the model it was saved from."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder, family = tmp_path_factory.mktemp(name), NAMES[name]
            config = tinies.config(family)
            config.tie_word_embeddings = name == "qwen2.5-vl-3b"
            config.text_config.rope_parameters["rope_theta"] = 1e6
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                model = tinies.MODELS[family]._from_config(config, dtype=torch.float32).eval()
            model.lm_head.weight.data[model.config.text_config.eos_token_id] *= 10  # or answers would hardly ever end
            write_shards(folder, model)
            if family == "qwen2_5_vl":
                write_qwen_files(folder, config)
            else:
                write_llava_files(folder, family, config)
            made[name] = folder, model
        return made[name]

    return make


@pytest.fixture
def own(hub: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of LLaVA-1.5's folder to take files away from."""
    return shutil.copytree(hub("llava-1.5")[0], tmp_path / "copy")


def picture(seed: int, size: tuple[int, int] = (90, 170)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def prune(model: Backbone, *images: Image.Image, text: str = QUESTION) -> PrunedPrompt:
    prompt = model.prompt(images, text)
    generators = [decision.image_generator(0, "test", n) for n in range(len(images))]
    return pruned_prompt.splice(model, Method(), prompt, model.encode(prompt.pixels), generators, decision.Rule())


@pytest.mark.parametrize("name", NAMES)
def test_the_hubs_files_make_the_model_that_was_saved(name: str, hub: Callable[[str], tuple[Path, Any]]) -> None:
    folder, saved = hub(name)
    files = {path.name for path in folder.iterdir()}
    assert len([file for file in files if file.endswith(".safetensors")]) >= 2
    assert ("processor_config.json" in files) == name.startswith("llava")
    model = backbones.load(name, weights=str(folder))
    for images in ([picture(1)], [picture(1), picture(2, (100, 60))]):
        inputs = model.processor(images=images, text=[model.chat(len(images), QUESTION)], return_tensors="pt")
        with torch.no_grad():
            wanted = saved(**inputs).logits
        assert torch.equal(forward.logits(model, Method(), [prune(model, *images)]), wanted)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_text_survives_the_hubs_tokenizer(name: str, hub: Callable[[str], tuple[Path, Any]]) -> None:
    model = backbones.load(name, weights=str(hub(name)[0]))
    prompt = model.prompt([picture(1)], QUESTION)
    (start, stop) = prompt.spans[0]
    assert (prompt.ids_L[start:stop] == model.image_id).all()
    assert (prompt.ids_L == model.image_id).sum() == stop - start
    assert QUESTION in model.processor.tokenizer.decode(prompt.ids_L[stop:])
    assert model.processor.tokenizer.pad_token_id == {"l": 32001, "q": 151643}[name[0]]


def test_vicuna_v1_is_llava_15s_own_conversation_and_the_image_is_found_in_the_ids(
    hub: Callable[[str], tuple[Path, Any]],
) -> None:
    folder, _ = hub("llava-1.5")
    starts = []
    for prompt, system in ((None, True), ("vicuna_v1", True), ("template", False)):
        model = backbones.load("llava-1.5", weights=str(folder), prompt=prompt)
        text = (f"{backbones.VICUNA_V1} " if system else "") + f"USER: <image>\n{QUESTION} ASSISTANT:"
        assert model.chat(1, QUESTION).rstrip() == text
        made = model.prompt([picture(1)], QUESTION)
        starts.append(made.spans[0][0])
        assert made.ids_L[starts[-1] - 1] != 32000 == made.ids_L[starts[-1]]
        assert (
            model.processor.tokenizer.decode(made.ids_L[: starts[-1]]).strip()
            == f"<s> {text.split('<image>')[0]}".strip()
        )
    assert starts[0] == starts[1] > starts[2]
    assert 35 not in starts


@pytest.mark.parametrize("name", ["llava-next-mistral", "qwen2.5-vl"])
def test_other_families_have_the_conversation_of_their_processor(
    name: str, hub: Callable[[str], tuple[Path, Any]]
) -> None:
    model = backbones.load(name, weights=str(hub(name)[0]))
    assert model.system == ""
    assert backbones.VICUNA_V1 not in model.chat(1, QUESTION)


def test_pixel_bounds_replace_those_of_the_hubs_processor(hub: Callable[[str], tuple[Path, Any]]) -> None:
    folder, _ = hub("qwen2.5-vl")
    image = picture(1, (280, 560))

    def num_tokens(pixels: tuple[int | None, int | None]) -> int:
        model = backbones.load("qwen2.5-vl", weights=str(folder), pixels=pixels)
        return len(model.encode(model.prompt([image], QUESTION).pixels)[0].embeds_ND)

    bounds = ((None, None), (4 * 784, None), (4 * 784, 50 * 784), (450 * 784, None))
    assert [num_tokens(pixels) for pixels in bounds] == [276, 200, 50, 450]


@pytest.mark.parametrize("name", ["llava-1.5", "qwen2.5-vl"])
def test_answers_are_greedy_whatever_the_hubs_generation_config_says(
    name: str, hub: Callable[[str], tuple[Path, Any]]
) -> None:
    """Qwen's asks for sampling and a repetition penalty."""
    pixels = (4 * 784, None) if name.startswith("qwen") else (None, None)
    model = backbones.load(name, weights=str(hub(name)[0]), pixels=pixels)
    texts = [QUESTION, "How many?", "Where is it?", "Describe the image."]
    answers = forward.generate(
        model, Method(), [prune(model, picture(1), text=text) for text in texts], max_new_tokens=6
    )
    assert [each.text for each in answers] == [likeliest(model, text, 6) for text in texts]
    assert sum(each.text != "" for each in answers) > 1


def likeliest(model: Backbone, text: str, length: int) -> str:
    """Answer by running transformers on the whole conversation for every token."""
    inputs = model.processor(images=[picture(1)], text=[model.chat(1, text)], return_tensors="pt")
    ends = torch.tensor(model.model.generation_config.eos_token_id).flatten().tolist()
    ids: list[int] = []
    while len(ids) < length and not (ids and ids[-1] in ends):
        given = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.int64)], dim=1)
        whole = {**inputs, "input_ids": given, "attention_mask": torch.ones_like(given)}
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = (given == model.image_id).int()
        with torch.no_grad():
            ids.append(int(model.model(**whole).logits[0, -1].argmax()))
    answer: str = model.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answer


def lacking(folder: Path, name: str = "llava-1.5") -> str:
    with pytest.raises(MissingError) as error:
        backbones.load(name, weights=str(folder))
    message = str(error.value)
    assert message.startswith(f"--backbone {name}: {folder} lacks ")
    assert "\n" not in message
    return message.removeprefix(f"--backbone {name}: {folder} lacks ")


def test_a_shard_that_is_missing_is_named(own: Path) -> None:
    shards = sorted(path.name for path in own.glob("*.safetensors"))
    (own / shards[1]).unlink()
    assert lacking(own) == f"{shards[1]}; give a folder that has them"


def test_an_index_that_is_missing_is_named(own: Path) -> None:
    (own / "model.safetensors.index.json").unlink()
    assert lacking(own) == "model.safetensors.index.json; give a folder that has them"


def test_a_folder_without_a_tokenizer_or_processor_says_so(own: Path) -> None:
    for name in ("tokenizer.json", "processor_config.json", "preprocessor_config.json"):
        (own / name).unlink()
    assert lacking(own) == "tokenizer.json, processor_config.json; give a folder that has them"


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    wanted = "config.json, tokenizer.json, processor_config.json, model.safetensors; give a folder that has them"
    assert lacking(tmp_path) == wanted


@pytest.mark.parametrize("weights", [None, "someone/some-llava"])
def test_what_is_not_in_the_hubs_cache_is_one_quick_sentence(
    weights: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(MissingError) as error:
        backbones.load("llava-next", weights=weights)
    assert time.monotonic() - start < 10
    repository = weights or "llava-hf/llava-v1.6-vicuna-7b-hf"
    message = str(error.value)
    assert "\n" not in message
    for part in (repository, "config.json, tokenizer.json, *.safetensors", str(tmp_path), f"hf download {repository}"):
        assert part in message


@pytest.mark.parametrize("weights", ["no such/folder", "nowhere", "./nowhere", "a/b/c", "~/nowhere/at/all"])
def test_a_path_that_leads_nowhere_is_one_sentence(weights: str) -> None:
    with pytest.raises(MissingError) as error:
        backbones.load("llava-next", weights=weights)
    assert "\n" not in str(error.value)
    assert "hf download" not in str(error.value)


def cached(source: Path, cache: Path, repository: str, commit: str) -> Path:
    """Lay a folder out as the hub's cache does: blobs, a snapshot of links, a branch."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    snapshot = entry / "snapshots" / commit
    for folder in (entry / "blobs", entry / "refs", snapshot):
        folder.mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    for path in source.iterdir():
        shutil.copy(path, entry / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return snapshot


def test_the_default_weights_are_found_in_the_hubs_cache(
    hub: Callable[[str], tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, saved = hub("llava-1.5")
    commit = "a" * 40
    snapshot = cached(folder, tmp_path, "llava-hf/llava-1.5-7b-hf", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert backbones.locate("llava-1.5") == backbones.locate("llava-1.5", revision=commit) == snapshot
    model = backbones.load("llava-1.5")
    assert torch.equal(model.model.lm_head.weight, saved.lm_head.weight)
    with pytest.raises(MissingError, match=r"hf download llava-hf/llava-1\.5-7b-hf --revision other$"):
        backbones.locate("llava-1.5", revision="other")
    (tmp_path / "models--llava-hf--llava-1.5-7b-hf" / "refs" / "main").unlink()
    assert backbones.locate("llava-1.5", revision=commit) == snapshot
    with pytest.raises(MissingError, match=f"at {commit}, but not at main; give --revision {commit}, or fetch them"):
        backbones.locate("llava-1.5")
    (tmp_path / "models--llava-hf--llava-1.5-7b-hf" / "refs" / "main").write_text(commit)
    shard = sorted(snapshot.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(
        MissingError, match=f"lacks {shard.name}; fetch them with: hf download llava-hf/llava-1.5-7b-hf"
    ):
        backbones.load("llava-1.5")


FULL_SIZE = [name for name in backbones.FAMILIES if name != "toy-llava"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_random_weights_make_the_published_model_without_files(name: str) -> None:
    family = backbones.FAMILIES[name]
    model = backbones.load(name, weights="random", device="meta", dtype="bfloat16")
    assert {each.device.type for each in model.model.parameters()} == {"meta"}
    assert f"{sum(each.numel() for each in model.model.parameters()) / 1e9:.1f} B" == family.parameters
    prompt = model.prompt([picture(1, (672, 672))], QUESTION)
    (start, stop), *_ = prompt.spans
    visual = {"llava-1": 576, "llava-n": 2880 + 48, "qwen2.5": 24 * 24}[name[:7]]
    assert stop - start == visual
    assert bool(model.system) == (family.prompt == "vicuna_v1")
    with pytest.raises(ConfigError, match="use them with profile only"):
        backbones.locate(name, "random")


@pytest.mark.parametrize(
    ("pixels", "most", "least"),
    [((None, None), 45 * 45, 16 * 16), ((4 * 28 * 28, 16384 * 28 * 28), 50 * 50, 4)],
    ids=["lmms-eval's by default", "those of the checkpoint's file"],
)
def test_qwens_images_have_between_200704_and_1605632_pixels(
    pixels: tuple[int | None, int | None], most: int, least: int
) -> None:
    model = backbones.load("qwen2.5-vl-3b", weights="random", device="meta", pixels=pixels)
    for size, tokens in (((1400, 1400), most), ((28, 28), least)):
        (start, stop), *_ = model.prompt([picture(1, size)], QUESTION).spans
        assert stop - start == tokens


def test_the_toy_has_no_random_weights() -> None:
    with pytest.raises(ConfigError, match="toy-llava has trained weights inside the package"):
        backbones.load("toy-llava", weights="random")
    with pytest.raises(ConfigError, match="use them with profile only"):
        backbones.locate("toy-llava", "random")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantizing_without_bitsandbytes_is_one_sentence(
    own: Path, monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        backbones.load("llava-1.5", weights=str(own), quantize=quantize)
    assert "pip install 'diffprune-bench[quantize]'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"quantize": "4bit"}, {"device_map": "auto"}, {"revision": "main"}])
def test_random_weights_refuse_what_they_would_ignore(setting: dict[str, str]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} has no effect with --weights random"):
        backbones.load("llava-1.5", weights="random", device="meta", **setting)  # type: ignore[arg-type]


REPEATED = pytest.mark.slow  # the tables' manifests run on these families too, in tests/manifest/test_shipped.py


@pytest.mark.parametrize(
    "name",
    [pytest.param("llava-1.5", marks=REPEATED), "llava-next-mistral", pytest.param("qwen2.5-vl", marks=REPEATED)],
)
def test_every_family_runs_all_ten_tasks(name: str, hub: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = hub(name)
    budgets = {"prune_rate": [0.75]} if name.startswith("qwen") else {"keep": [10]}
    wanted = make_manifest(
        {
            "name": "trial",
            "backbone": {"name": name, "weights": str(folder)},
            "methods": ["none", "fastv", "random"],
            "budgets": {**budgets, "kind": "final"},
            "protocol": {"limit": 1},
        },
        source="test",
    )
    outcome = runner.run(wanted, tmp_path, TOY_DATA, device="cpu", console=Console(quiet=True))
    found = record.read(tmp_path / "trial" / "records.jsonl", Record)
    assert len(found) == len(outcome.added) == 10 * 3
    assert outcome.num_failed_samples == 0
    assert {(each.cell["task"], each.cell["method"]) for each in found} == {
        (task, method) for task in TASKS for method in ("none", "fastv", "random")
    }
    whole = {each.cell["task"]: each.visual_tokens_per_layer for each in found if each.cell["method"] == "none"}
    for each in found:
        assert len(Journal(tmp_path / "trial" / "samples" / f"{each.cell_id}.jsonl").answers) == each.num_samples > 0
        first, last = each.visual_tokens_per_layer[0], each.visual_tokens_per_layer[-1]
        assert first == whole[each.cell["task"]][0] if each.cell["method"] != "random" else first == last
        assert last < first if each.cell["method"] == "fastv" else last == first


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer of characters, as SentencePiece marks spaces: `legacy: false` in a file gives the scheme "first"."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<pad>": 4, "▁": 5, "\n": 6}
    ids |= {letter: 7 + number for number, letter in enumerate(map(chr, range(33, 127)))}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def test_the_pieces_around_an_image_are_tokenised_apart_whatever_the_tokenizers_file_says() -> None:
    ids = {}
    for scheme in ("first", "always"):
        model = backbones.load("llava-1.5", weights="random", device="meta")
        model.conversation, model.image_id = ConversationTokenizer(sentencepiece(scheme), 3), 3
        ids[scheme] = model.tokenize([2, 2], [(), ()], "Why?").ids_L.tolist()
    assert ids["first"] == ids["always"]
    space, newline, image = 5, 6, 3
    middle = ids["first"].index(image)
    assert ids["first"][middle - 2 : middle] == [7 + ord(":") - 33, space]
    assert ids["first"][middle : middle + 8] == [image, image, space, newline, image, image, space, newline]
    assert ids["first"].count(1) == 1
    whole = sentencepiece("first")(model.chat(2, "Why?"))["input_ids"]
    assert len(whole) == len(ids["first"]) - 2 - 2, "the whole loses the space behind each image"


def test_backbones_of_one_manifest_answer_as_each_does_alone(
    hub: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    entries = [{"name": name, "weights": str(hub(name)[0])} for name in ("qwen2.5-vl-3b", "llava-1.5")]
    shared = {"methods": ["none", "random"], "budgets": {"prune_rate": [0.75]}, "tasks": ["pope"]}
    shared |= {"protocol": {"preset": "published", "dtype": "float32", "limit": 2}}
    console = Console(quiet=True)
    both = make_manifest({"name": "both", "backbone": entries, **shared}, source="test")
    outcome = runner.run(both, tmp_path, TOY_DATA, device="cpu", console=console)
    together = {row.cell_id: row for row in record.read(tmp_path / "both" / "records.jsonl", Record)}
    assert len(together) == len(outcome.added) == 4
    for part in both.parts():
        alone = part.model_copy(update={"name": part.backbone.name})
        for row in runner.run(alone, tmp_path, TOY_DATA, device="cpu", console=console).added:
            assert (together[row.cell_id].metrics, row.cell["backbone"]) == (row.metrics, part.backbone.name)
            paths = [tmp_path / name / "samples" / f"{row.cell_id}.jsonl" for name in ("both", part.backbone.name)]
            first, second = ([line.answer for line in Journal(path).answers.values()] for path in paths)
            assert first == second
    again = runner.run(load_manifest(tmp_path / "both" / "manifest.yaml"), tmp_path, TOY_DATA, console=console)
    assert (len(again.existing), again.added) == (4, ())


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("llava-1.5", "<image>"),
        ("llava-next-mistral", "</s>"),
        ("qwen2.5-vl", "<|image_pad|>"),
        ("qwen2.5-vl", "<|im_end|>"),
    ],
)
def test_a_special_token_in_a_question_is_read_as_text(
    name: str, word: str, hub: Callable[[str], tuple[Path, Any]]
) -> None:
    model = backbones.load(name, weights=str(hub(name)[0]))
    tokenizer = model.processor.tokenizer
    plain, odd = (model.prompt([picture(1)], f"What does {text} mean?") for text in ("~", word))
    special = tokenizer.convert_tokens_to_ids(word)
    assert (odd.ids_L == special).sum() == (plain.ids_L == special).sum()
    (start, stop), (start_of_plain, stop_of_plain) = odd.spans[0], plain.spans[0]
    assert (start, stop) == (start_of_plain, stop_of_plain)
    assert f"What does {word} mean?" in tokenizer.decode(odd.ids_L[stop:])
    letters = tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(letters) > 1
    assert len(odd.ids_L) - len(plain.ids_L) == len([i for i in letters if tokenizer.decode([i]).strip()]) - 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llava-1.5", ("<image>", "</s>", "<s>", "<pad>")),
        ("llava-next-mistral", ("<image>", "</s>")),
        ("qwen2.5-vl", ("<|image_pad|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>")),
    ],
)
def test_a_special_token_in_a_caption_is_read_as_text_and_other_captions_as_ever(
    name: str, words: tuple[str, ...], hub: Callable[[str], tuple[Path, Any]]
) -> None:
    model = backbones.load(name, weights=str(hub(name)[0]))
    tokenizer = model.processor.tokenizer
    for word in words:
        caption = f"a sign that says {word} twice"
        reply = model.conversation.reply(caption)
        assert tokenizer.decode(reply[:-1]).strip() == caption
        assert tokenizer.convert_tokens_to_ids(word) not in reply[:-1].tolist()
        assert (reply == model.image_id).sum() == 0
        assert reply[-1] == tokenizer.eos_token_id
    plain = tokenizer(" a red circle", add_special_tokens=False)["input_ids"]
    assert model.conversation.reply("a red circle").tolist() == [*plain, tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["llava-1.5", "qwen2.5-vl"])
def test_the_private_character_that_stands_for_odd_questions_may_be_asked_itself(
    name: str, hub: Callable[[str], tuple[Path, Any]]
) -> None:
    model = backbones.load(name, weights=str(hub(name)[0]))
    tokenizer, text = model.processor.tokenizer, "What is \ue000 here?"
    ids = model.prompt([picture(1)], text).ids_L
    assert tokenizer.decode(ids).count("What is") == tokenizer.decode(ids).count("here?") == 1
