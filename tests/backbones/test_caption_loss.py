"""The losses training differentiates: transformers' own on the whole image, the engine's on what is kept of it."""

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.backbones.caption_loss import caption_logits, caption_losses
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.method import Method, Reduction, VisualTokens

CAPTIONS = ("a red circle", "nothing to see at the top left of this image")


@dataclass(frozen=True, kw_only=True)
class Chosen(Method):
    """Keep the indices given, at their original positions."""

    anyres: ClassVar[Literal["per-view", "global", "own"]] = "global"
    positions: Literal["compact", "original"] = "original"
    chosen: tuple[int, ...]

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.tensor(self.chosen, dtype=torch.int64))


backbone = cache(tinies.backbone)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(model: Backbone) -> tuple[list[Prompt], list[Features], list[Tensor]]:
    """Two prompts whose images, questions and captions differ in length."""
    prompts = [model.prompt([picture(1, (60, 100))], "Describe ."), model.prompt([picture(2, (60, 60))], "And now ?")]
    features = [model.encode(prompt.pixels)[0] for prompt in prompts]
    return prompts, features, [each.embeds_ND.detach().clone().requires_grad_() for each in features]


def reply_of(model: Backbone, caption: str) -> Tensor:
    ids = model.processor.tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
    return torch.tensor([*ids, model.processor.tokenizer.eos_token_id])


def transformers_losses(model: Backbone, prompt: Prompt, caption: str) -> Tensor:
    reply, pixels = reply_of(model, caption), prompt.pixels[0]
    ids = torch.cat([prompt.ids_L, reply])[None]
    if model.name == "qwen2_5_vl":
        given = {"image_grid_thw": torch.tensor([pixels.size]), "mm_token_type_ids": (ids == model.image_id).int()}
        given |= {"pixel_values": pixels.values.double()}
    else:
        given = {"pixel_values": pixels.values[None].double()}
        given |= {"image_sizes": torch.tensor([pixels.size])} if model.name == "llava_next" else {}
    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits
    return cross_entropy(logits[0, -len(reply) - 1 : -1], reply, reduction="none")


def engine_losses(model: Backbone, prompt: Prompt, features: Features, kept: Tensor, caption: str) -> Tensor:
    """The reply is part of the prompt, and the engine prunes it like any other."""
    reply = reply_of(model, caption)
    ids, positions = torch.cat([prompt.ids_L, reply]), None
    if model.mrope:
        positions, _ = model.core.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids[None] == model.image_id).int(),
            image_grid_thw=torch.tensor([prompt.pixels[0].size]),
        )
        positions = positions[:, 0]
    method, whole = Chosen(chosen=tuple(kept.tolist())), replace(prompt, ids_L=ids, positions_PL=positions)
    generators = [decision.image_generator(0, "test", 0)]
    spliced = pruned_prompt.splice(
        model, method, whole, [features], generators, decision.Rule(BudgetRequest(keep=len(kept)))
    )
    assert spliced.num_visual == len(kept)
    logits = forward.logits(model, method, [spliced])[0]
    return cross_entropy(logits[-len(reply) - 1 : -1], reply, reduction="none")


def some_read(features: Features, num: int, seed: int) -> Tensor:
    """Indices of some of the tokens the LLM reads, in no order."""
    read = features.read_N.nonzero()[:, 0]
    return read[torch.randperm(len(read), generator=torch.Generator().manual_seed(seed))[:num]]


def close(got: Tensor, wanted: Tensor) -> None:
    """Equal to what the float32 inside transformers' RMS norms leaves of the digits."""
    torch.testing.assert_close(got.detach(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_the_caption_losses_are_transformers_losses_on_the_reply(family: str) -> None:
    model = backbone(family)
    prompts, features, visual = encoded(model)
    losses = caption_losses(model, prompts, features, visual, CAPTIONS)
    wanted = [transformers_losses(model, *each) for each in zip(prompts, CAPTIONS, strict=True)]
    close(losses, torch.cat(wanted))
    losses.mean().backward()
    for each, feature in zip(visual, features, strict=True):
        assert torch.equal(each.grad.abs().sum(-1) > 0, feature.read_N)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("num_kept", [(1, 3), (3, 2), (40, 40)])
def test_the_caption_losses_of_what_is_kept_are_the_engines(family: str, num_kept: tuple[int, int]) -> None:
    model = backbone(family)
    prompts, features, visual = encoded(model)
    kept = [some_read(each, num, seed) for seed, (each, num) in enumerate(zip(features, num_kept, strict=True))]
    losses = caption_losses(model, prompts, features, visual, CAPTIONS, kept)
    wanted = [engine_losses(model, *each) for each in zip(prompts, features, kept, CAPTIONS, strict=True)]
    close(losses, torch.cat(wanted))
    losses.mean().backward()
    for each, indices in zip(visual, kept, strict=True):
        assert each.grad.abs().sum(-1).nonzero()[:, 0].tolist() == sorted(indices.tolist())


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_leaving_tokens_out_changes_every_loss(family: str) -> None:
    model = backbone(family)
    prompts, features, visual = encoded(model)
    kept = [some_read(each, 3, 0) for each in features]
    full = caption_losses(model, prompts, features, visual, CAPTIONS)
    pruned = caption_losses(model, prompts, features, visual, CAPTIONS, kept)
    assert ((full - pruned).abs() > 1e-4).all()


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_what_takes_the_place_of_the_tokens_is_what_is_read(family: str) -> None:
    """The losses are those of `visual`, not of the features, and each token goes where its own placeholder is."""
    model = backbone(family)
    prompts, features, visual = encoded(model)
    kept = [some_read(each, 3, 1) for each in features]
    changed = [each.detach().flip(-1) for each in visual]
    swapped = [replace(f, embeds_ND=v) for f, v in zip(features, changed, strict=True)]
    wanted = [engine_losses(model, *each) for each in zip(prompts, swapped, kept, CAPTIONS, strict=True)]
    close(caption_losses(model, prompts, features, changed, CAPTIONS, kept), torch.cat(wanted))


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_a_caption_that_names_special_tokens_is_learned_to_its_last_letter(family: str) -> None:
    """Every letter is a label, the end token is the last one only, and no neighbour's labels move."""
    model = backbone(family)
    tokenizer = model.processor.tokenizer
    end, image = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(model.image_id)
    prompts, features, visual = encoded(model)
    captions = (f"a {end} and {image} on it {end}", CAPTIONS[1])
    replies = [model.conversation.reply(caption) for caption in captions]
    logits, labels = caption_logits(model, prompts, features, visual, captions)
    assert torch.equal(labels, torch.cat(replies))
    assert [(reply == tokenizer.eos_token_id).nonzero().flatten().tolist() for reply in replies] == [
        [len(reply) - 1] for reply in replies
    ]
    assert model.image_id not in labels
    rows = zip(prompts, features, visual, captions, strict=True)
    alone = [caption_logits(model, *([part] for part in row))[0] for row in rows]
    torch.testing.assert_close(logits.detach(), torch.cat(alone).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_no_caption_is_cut_short(family: str) -> None:
    model = backbone(family)
    prompts, features, visual = encoded(model)
    captions = ("red " * 300, "red")
    logits, labels = caption_logits(model, prompts, features, visual, captions)
    sizes = [len(model.conversation.reply(caption)) for caption in captions]
    assert sizes[0] > 300
    assert len(logits) == len(labels) == sum(sizes)


def test_tokens_that_unpadding_drops_are_not_read_though_kept() -> None:
    model = backbone("llava_next")
    prompts, features, visual = encoded(model)
    assert not features[0].read_N.all()
    read = [some_read(each, 5, 2) for each in features]
    more = [torch.cat([r, (~f.read_N).nonzero()[:, 0]]) for r, f in zip(read, features, strict=True)]
    wanted = caption_losses(model, prompts, features, visual, CAPTIONS, read)
    assert torch.equal(caption_losses(model, prompts, features, visual, CAPTIONS, more), wanted)
