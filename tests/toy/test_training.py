"""The recipe: packed turns equal turns asked one by one, stages resume, what is written loads as any LLaVA."""

import re
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaProcessor

from dpbench import backbones
from dpbench.backbones.llava import Llava
from dpbench.toy import build, llava, tower
from dpbench.toy.llava import (
    IGNORE,
    PHASES,
    LlavaStage,
    captions,
    descriptions,
    fresh_llava,
    image_head,
    questions,
    reply_loss,
)
from dpbench.toy.prompts import LETTERS, SHORT, Exchange, ask_contrasts, ask_reordered, ask_swapped, random_list
from dpbench.toy.scenes import draw, training_scene
from dpbench.toy.tower import TowerStage

TOWER = TowerStage(width=32, layers=2, steps=2, batch=4)
DECODER = LlavaStage(
    width=32, layers=2, phases=tuple((name, 1 + 2 * (name == "lists")) for name in PHASES), lists=2, batch=2
)


@pytest.fixture(scope="module")
def trained_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    tower.train_tower(folder, TOWER, seed=0)
    return folder


def pack(conversations: list[list[Exchange]], processor: LlavaProcessor) -> llava.Packed:
    return llava.pack(conversations, [image_head(processor.tokenizer)] * len(conversations), processor.tokenizer)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_turns_see_the_image_and_themselves_only(
    trained_tower: Path, processor: LlavaProcessor, attention: str
) -> None:
    """Once the mask was boolean, eager attention added it as ones, and the model read its own answers."""
    torch.manual_seed(0)
    model = fresh_llava(trained_tower, processor, DECODER).eval()
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(0)
    scenes = [training_scene(rng) for _ in range(3)]
    images = tower.pixels(draw(scenes, rng))
    conversations = [
        captions(scene, rng, 2) + descriptions(scene, rng, 2) + questions(scene, rng, 2, 5) for scene in scenes
    ]
    packed, total, count = reply_loss(model, images, pack(conversations, processor))[0], 0.0, 0
    for turn in range(len(conversations[0])):
        single = pack([[exchanges[turn]] for exchanges in conversations], processor)
        wanted = int((single.labels_BL != IGNORE).sum())
        total += float(reply_loss(model, images, single)[0]) * wanted
        count += wanted
    assert float(packed) == pytest.approx(total / count, abs=1e-4)


def test_a_packed_turn_is_what_generation_asks(processor: LlavaProcessor, tiny: Llava) -> None:
    rng = np.random.default_rng(1)
    exchange = questions(training_scene(rng), rng, 0, 1)[-1]
    (ids,) = pack([[exchange]], processor).ids_BL.tolist()
    from PIL import Image

    asked = tiny.prompt([Image.new("RGB", (96, 96))], exchange.prompt).ids_L.tolist()
    assert ids[: len(asked)] == asked
    assert processor.tokenizer.decode(ids[len(asked) :]) == f" {exchange.reply}</s>"


def test_pixels_are_what_the_processor_makes(processor: LlavaProcessor) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    images = draw([training_scene(rng)], rng)
    theirs = processor.image_processor(Image.fromarray(images[0]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tower.pixels(images), theirs, rtol=1e-5, atol=1e-5)


def test_lists_ask_each_letter_and_each_option_once() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        text, exchanges = random_list(rng)
        lines = dict(line.split(". ", 1) for line in text.split("\n"))
        half = len(exchanges) // 2
        assert [exchange.reply for exchange in exchanges[:half]] == list(lines) == list(LETTERS[:half])
        assert [exchange.reply for exchange in exchanges[half:]] == list(lines.values())
        assert all(
            exchange.prompt.startswith(option) for exchange, option in zip(exchanges, lines.values(), strict=False)
        )


def test_contrasts_are_half_true_and_differ_in_a_word() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        asked = ask_contrasts(training_scene(rng), rng, 1)
        assert sorted(exchange.reply for exchange in asked) == ["no", "yes"]
        first, second = (exchange.prompt.removesuffix(SHORT).rstrip("?").split() for exchange in asked)
        assert 1 <= sum(a != b for a, b in zip_longest(first, second)) <= 3


def test_a_reordered_choice_keeps_its_answer_not_its_letter() -> None:
    rng = np.random.default_rng(5)
    letters = set()
    for _ in range(50):
        asked = ask_reordered(training_scene(rng), rng, 4)
        options = {re.search(rf"\n{exchange.reply}\. (.*)", exchange.prompt).group(1) for exchange in asked}  # type: ignore[union-attr]
        assert len(options) == 1
        letters |= {exchange.reply for exchange in asked}
    assert letters == set(LETTERS[:4])


def test_a_swapped_choice_has_both_letters() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        assert sorted(exchange.reply for exchange in ask_swapped(training_scene(rng), rng)) == ["A", "B"]


def test_visual_embeddings_start_at_the_size_of_text_embeddings(trained_tower: Path, processor: LlavaProcessor) -> None:
    model = fresh_llava(trained_tower, processor, DECODER)
    rng = np.random.default_rng(5)
    images = tower.pixels(draw([training_scene(rng) for _ in range(16)], rng))
    size = llava.visual_embeds(model, images).detach().square().mean().sqrt()
    assert 0.5 * llava.VISUAL_RMS < float(size) < 2 * llava.VISUAL_RMS


def test_the_recipe_builds_a_backbone_and_resumes_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.SCALES, "small", (TOWER, DECODER))
    monkeypatch.setattr(build, "make_processor", cache(build.make_processor))  # training the tokenizer takes seconds
    weights = build.build(tmp_path, device="cpu")
    backbone = backbones.load("toy-llava", weights=str(weights))
    assert backbone.num_visual == 144
    stamp = (tmp_path / "tower" / "model.safetensors").stat().st_mtime_ns
    (weights / "model.safetensors").unlink()
    build.build(tmp_path, device="cpu")
    assert (tmp_path / "tower" / "model.safetensors").stat().st_mtime_ns == stamp
    assert (weights / "log_tower.jsonl").is_file()
