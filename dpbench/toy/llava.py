"""Stage 2 of toy-llava: projector and decoder learn to caption and to answer, on top of the tower of stage 1.

Captions first, then captions and questions, then questions. Then come the skills that questions alone did not teach,
each in its own phase (`PHASES`): finding what a phrase describes, telling yes from no, and choosing a letter.

Each scene is one packed sequence: the image (or the list) once, then turns that see it and themselves but not each
other (a block mask, with positions that restart after the image), so that a turn is trained exactly as it is asked
later. The loss is on replies only.

Shape letters: B scenes, L packed positions, N visual tokens, D width.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dpbench.storage import files
from dpbench.toy.optimizer import MuonAdamW
from dpbench.toy.prompts import (
    DESCRIBE,
    FORMATS,
    Exchange,
    ask_contrasts,
    ask_in_chinese,
    ask_reordered,
    ask_swapped,
    describe,
    random_exchange,
    random_list,
)
from dpbench.toy.questions import KINDS, YES_NO_KINDS, caption, phrase_caption, place_caption, random_phrase
from dpbench.toy.scenes import PLACES, Scene, draw, training_scene
from dpbench.toy.tower import SELECT_LAYER, pixels

STAGE = "stage 2, projector and decoder"
NUM_VISUAL = 144
VISUAL_RMS = 0.1
SAVE_EVERY = 200
LIST_EVERY = 3
OPEN_KINDS = tuple(kind for kind in KINDS if kind not in YES_NO_KINDS)
LATEST = "latest"
IGNORE = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaStage:
    """Size of the decoder and length of its training.

    phases: names in PHASES with their steps, in order. In "lists" one step in three is on `lists` option lists without
        an image: a text skill that LLaVA's decoder has before it is trained on images.
    """

    width: int = 128
    layers: int = 12
    phases: tuple[tuple[str, int], ...] = (
        ("captions", 400),
        ("mixed", 400),
        ("questions", 900),
        ("lists", 600),
        ("descriptions", 300),
        ("contrasts", 400),
        ("choices", 800),
        ("chinese", 900),
        ("everything", 2300),
    )
    lists: int = 64
    batch: int = 16

    @property
    def steps(self) -> int:
        """Number of steps of all phases."""
        return sum(length for _, length in self.phases)

    def phase(self, step: int) -> str:
        """Return the phase of a step."""
        ends = accumulate(length for _, length in self.phases)
        return next(name for (name, _), end in zip(self.phases, ends, strict=True) if step < end)


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of packed turns; `block_BL` is 0 in the shared part, 1.. per turn, -1 in padding."""

    ids_BL: Tensor
    block_BL: Tensor
    positions_BL: Tensor
    labels_BL: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return (B, 1, L, L), 0 at earlier positions of the shared part or of the same turn, else the least float.

        Additive because eager attention adds its mask: booleans would be added as ones and mask nothing.
        """
        query, key = self.block_BL[:, :, None], self.block_BL[:, None, :]
        length = self.ids_BL.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        hidden = ~(causal & ((key == query) | (key == 0)))[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def fresh_llava(tower: Path, processor: LlavaProcessor, stage: LlavaStage) -> LlavaForConditionalGeneration:
    """Assemble an untrained LLaVA around the trained tower."""
    tokenizer = processor.tokenizer
    trained = CLIPVisionModel.from_pretrained(tower)
    trained.config._name_or_path = ""  # otherwise the config of the weights would hold the path of the training folder
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=stage.width,
        intermediate_size=5 * stage.width // 2,
        num_hidden_layers=stage.layers,
        num_attention_heads=stage.width // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=trained.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=SELECT_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_VISUAL,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(trained.state_dict())
    whiten_projector(model, np.random.default_rng(0))
    return model


@torch.no_grad()
def whiten_projector(model: LlavaForConditionalGeneration, rng: np.random.Generator) -> None:
    """Start the projector as a random map of whitened features, at the size of text embeddings.

    The select layer's features are far from the origin and a hundred times larger than text embeddings. Without this,
    the decoder layers could hardly change a visual token.
    """
    core, images = model.model, draw([training_scene(rng) for _ in range(64)], rng)
    hidden = core.vision_tower(pixels(images), output_hidden_states=True).hidden_states[SELECT_LAYER][:, 1:]
    rows = hidden.flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    whiten = vectors @ torch.diag((values + values.median()).rsqrt()) @ vectors.T
    first, second = core.multi_modal_projector.linear_1, core.multi_modal_projector.linear_2
    nn.init.orthogonal_(first.weight)
    nn.init.orthogonal_(second.weight)
    first.weight.copy_(first.weight @ whiten)
    first.bias.copy_(-first.weight @ rows.mean(0))
    second.bias.zero_()
    second.weight.mul_(VISUAL_RMS / core.multi_modal_projector(hidden).square().mean().sqrt())


def captions(scene: Scene, rng: np.random.Generator, num_places: int) -> list[Exchange]:
    """Return a scene's caption and the captions of some places, in random order."""
    places = [str(place) for place in rng.permutation(PLACES)[:num_places]]
    of_places = [Exchange(describe(place), place_caption(scene, place)) for place in places]
    return [Exchange(DESCRIBE, caption(scene)), *of_places]


def descriptions(scene: Scene, rng: np.random.Generator, num: int) -> list[Exchange]:
    """Return descriptions of the objects that some phrases match, or "nothing"."""
    phrases = [random_phrase(scene, rng) for _ in range(num)]
    return [Exchange(describe(phrase.english), phrase_caption(scene, phrase)) for phrase in phrases]


def questions(scene: Scene, rng: np.random.Generator, num_short: int, num_long: int) -> list[Exchange]:
    """Return short questions about a scene, about half of them yes-or-no, and questions in the other formats."""
    short = [random_exchange(scene, rng, "short", (*KINDS, *YES_NO_KINDS)) for _ in range(num_short)]
    forms = [str(form) for form in rng.permutation(FORMATS[1:])[:num_long]]
    return short + [random_exchange(scene, rng, form) for form in forms]


PHASES: dict[str, Callable[[Scene, np.random.Generator], list[Exchange]]] = {
    "captions": lambda scene, rng: captions(scene, rng, len(PLACES)),
    "mixed": lambda scene, rng: captions(scene, rng, 2) + questions(scene, rng, 3, 3),
    "questions": lambda scene, rng: questions(scene, rng, 7, 1),
    "lists": lambda scene, rng: captions(scene, rng, 1)[1:] + descriptions(scene, rng, 2) + questions(scene, rng, 6, 3),
    "descriptions": lambda scene, rng: descriptions(scene, rng, 1) + questions(scene, rng, 10, 3),
    "contrasts": lambda scene, rng: (
        descriptions(scene, rng, 1) + questions(scene, rng, 1, 0) + ask_contrasts(scene, rng, 6)
    ),
    "choices": lambda scene, rng: [
        *questions(scene, rng, 1, 0),
        *ask_contrasts(scene, rng, 1),
        *ask_swapped(scene, rng),
        *ask_swapped(scene, rng),
        *ask_reordered(scene, rng, 3),
    ],
    "chinese": lambda scene, rng: [
        *captions(scene, rng, 0),
        random_exchange(scene, rng, "vizwiz"),
        *ask_contrasts(scene, rng, 1),
        *ask_swapped(scene, rng, ["mmbench_cn"]),
        *ask_swapped(scene, rng, ["mmbench_cn"]),
        *ask_reordered(scene, rng, 3, ["mmbench_cn"]),
        *ask_reordered(scene, rng, 2),
    ],
    "everything": lambda scene, rng: [
        *captions(scene, rng, 1),
        *descriptions(scene, rng, 1),
        *questions(scene, rng, 1, 0),
        random_exchange(scene, rng, "short", OPEN_KINDS),
        random_exchange(scene, rng, "vizwiz"),
        *(ask_in_chinese(scene, rng) for _ in range(2)),
        *ask_contrasts(scene, rng, 1),
        *ask_swapped(scene, rng, ["mmbench_cn"]),
        *ask_reordered(scene, rng, 2, ["mmbench_cn"]),
        *ask_reordered(scene, rng, 2),
    ],
}
"""The turns about a scene in each phase. A single question about a scene teaches a bias. Two questions that differ in
one word or in the order of their options, and have different answers, teach to look at the image.
"""


def image_head(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that a conversation about an image begins with, one placeholder per visual token."""
    head = tokenizer("USER: <image>\n")["input_ids"]
    at = head.index(tokenizer.convert_tokens_to_ids("<image>"))
    return [*head[:at], *[head[at]] * NUM_VISUAL, *head[at + 1 :]]


def pack(conversations: list[list[Exchange]], heads: list[list[int]], tokenizer: PreTrainedTokenizerFast) -> Packed:
    """Lay each scene's turns behind its head, right-padded."""
    rows = [_pack_one(exchanges, head, tokenizer) for exchanges, head in zip(conversations, heads, strict=True)]
    length = max(len(row[0]) for row in rows)
    fill = (tokenizer.pad_token_id, -1, 0, IGNORE)
    columns = (
        torch.tensor([row[k] + [fill[k]] * (length - len(row[k])) for row in rows], dtype=torch.int64) for k in range(4)
    )
    return Packed(*columns)


def _pack_one(
    exchanges: list[Exchange], head: list[int], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], list[int], list[int]]:
    ids, block, positions, labels = list(head), [0] * len(head), list(range(len(head))), [IGNORE] * len(head)
    asks = tokenizer([f"{e.prompt} ASSISTANT:" for e in exchanges], add_special_tokens=False)["input_ids"]
    replies = tokenizer([f" {e.reply}</s>" for e in exchanges], add_special_tokens=False)["input_ids"]
    for index, (ask, reply) in enumerate(zip(asks, replies, strict=True), start=1):
        size = len(ask) + len(reply)
        ids += ask + reply
        block += [index] * size
        positions += range(len(head), len(head) + size)
        labels += [IGNORE] * len(ask) + reply
    return ids, block, positions, labels


def visual_embeds(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Run tower and projector, (B, N, D); the tower gets a gradient only if its parameters require one."""
    core = model.model
    tower = core.vision_tower
    with torch.set_grad_enabled(any(p.requires_grad for p in tower.parameters())):
        hidden = tower(images, output_hidden_states=True).hidden_states[SELECT_LAYER][:, 1:]
    embeds: Tensor = core.multi_modal_projector(hidden)
    return embeds


def reply_loss(model: LlavaForConditionalGeneration, images: Tensor | None, packed: Packed) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over reply tokens and the share predicted right; `images` is None for lists."""
    embeds = model.get_input_embeddings()(packed.ids_BL)
    if images is not None:
        visual = visual_embeds(model, images)
        start = int((packed.ids_BL[0] == model.config.image_token_id).int().argmax())
        embeds = torch.cat([embeds[:, :start], visual.to(embeds.dtype), embeds[:, start + NUM_VISUAL :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=packed.mask(embeds.dtype),
        position_ids=packed.positions_BL,
        use_cache=False,
    ).last_hidden_state
    labels = packed.labels_BL[:, 1:]
    is_reply = labels != IGNORE
    logits = model.lm_head(hidden[:, :-1][is_reply]).float()
    right = (logits.argmax(-1) == labels[is_reply]).float().mean()
    return nn.functional.cross_entropy(logits, labels[is_reply]), right


def example_batch(
    stage: LlavaStage, step: int, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> tuple[Packed, Tensor | None]:
    """Return the turns and images of a step; the images are None if the step is on lists."""
    phase = stage.phase(step)
    if phase == "lists" and step % LIST_EVERY == 0:
        lists = [random_list(rng) for _ in range(stage.lists)]
        heads = [tokenizer(f"USER: {text}\n")["input_ids"] for text, _ in lists]
        return pack([exchanges for _, exchanges in lists], heads, tokenizer), None
    scenes = [training_scene(rng) for _ in range(stage.batch)]
    turns = [PHASES[phase](scene, rng) for scene in scenes]
    return pack(turns, [image_head(tokenizer)] * len(scenes), tokenizer), pixels(draw(scenes, rng))


def train_llava(
    out: Path,
    tower: Path,
    processor: LlavaProcessor,
    stage: LlavaStage,
    *,
    seed: int,
    device: str = "cpu",
    compiled: bool = False,
    console: Console | None = None,
) -> None:
    """Train projector and decoder and write the model (float16) and processor as `save_pretrained` does."""
    torch.manual_seed(seed)
    first = _first_step(out)
    rng = np.random.default_rng([seed, first])
    model = _latest(out) if first else fresh_llava(tower, processor, stage)
    model.to(device)
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(False)
    for layer in model.model.language_model.layers if compiled else ():
        layer.compile(dynamic=True)
    optimizer = MuonAdamW([model], steps=stage.steps, start=first, muon_lr=0.02, adam_lr=3e-3)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for step in track(range(first, stage.steps), STAGE, console=console):
        packed, images = example_batch(stage, step, processor.tokenizer, rng)
        packed = Packed(*(getattr(packed, name).to(device) for name in Packed.__slots__))
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, right = reply_loss(model, None if images is None else images.to(device), packed)
        optimizer.step(loss)
        if step % 25 == 0 or step == stage.steps - 1:
            row = {"step": step, "loss": loss.item(), "reply_tokens_right_ratio": right.item()}
            row |= {"seconds": round(time.perf_counter() - start, 1)}
            files.append(out / "log.jsonl", (json.dumps(row) + "\n").encode(), sync=False)
        if step % SAVE_EVERY == SAVE_EVERY - 1:
            copy.deepcopy(model).half().save_pretrained(out / LATEST)
            files.replace(out / LATEST / "next_step", str(step + 1).encode())
    model.set_attn_implementation("sdpa")
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    shutil.rmtree(out / LATEST, ignore_errors=True)


def _first_step(out: Path) -> int:
    """Return the step from which a stopped training continues, 0 for a new one."""
    mark = out / LATEST / "next_step"
    return int(mark.read_text()) if mark.is_file() else 0


def _latest(out: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(out / LATEST, dtype=torch.float32)
