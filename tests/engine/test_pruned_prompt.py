"""The engine: what it leaves alone equals transformers, what it drops equals masking."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpbench import registry
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone, Prompt
from dpbench.backbones.llava import Llava
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.method import Method, Reduction, VisualTokens

Picture = Callable[[int], Image.Image]
QUESTIONS = ("Is there a red circle in the image?", "How many objects are there in the image?\nAnswer.")


@dataclass(frozen=True, kw_only=True)
class Chosen(Method):
    """Keep the indices given."""

    chosen: tuple[int, ...] = ()

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.tensor(self.chosen, dtype=torch.int64))


def prune(tiny: Backbone, method: Method, prompt: Prompt, keep: int = 144, kind: Any = "mean") -> PrunedPrompt:
    features = tiny.encode(prompt.pixels, method.needs(tiny.provides)) if prompt.pixels else []
    generators = [decision.image_generator(0, "test", n) for n in range(len(features))]
    return pruned_prompt.splice(
        tiny, method, prompt, features, generators, decision.Rule(BudgetRequest(keep=keep), kind=kind)
    )


def visual_of(prompt: Prompt) -> Tensor:
    """Return which of the prompt's positions are placeholders."""
    flags = torch.zeros(len(prompt.ids_L), dtype=torch.bool)
    for start, stop in prompt.spans:
        flags[start:stop] = True
    return flags


def inputs(tiny: Llava, picture: Picture, question: str, seeds: tuple[int, ...] = (1,)) -> dict[str, Tensor]:
    prompt = tiny.prompt([picture(seed) for seed in seeds], question)
    return {
        "input_ids": prompt.ids_L[None],
        "attention_mask": torch.ones_like(prompt.ids_L)[None],
        "pixel_values": torch.stack([each.values for each in prompt.pixels]).double(),
    }


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_identity_equals_transformers_in_every_logit(
    tiny: Llava, picture: Picture, positions: str, seeds: tuple[int, ...]
) -> None:
    wanted = tiny.model(**inputs(tiny, picture, QUESTIONS[0], seeds)).logits
    prompt = tiny.prompt([picture(seed) for seed in seeds], QUESTIONS[0])
    got = forward.logits(tiny, Method(), [prune(tiny, Method(positions=positions), prompt)])
    assert torch.equal(got, wanted)


def test_identity_generates_what_transformers_generates(tiny: Llava, picture: Picture) -> None:
    given = inputs(tiny, picture, QUESTIONS[0])
    ids = tiny.model.generate(**given, max_new_tokens=8, do_sample=False)[:, given["input_ids"].shape[1] :]
    wanted = tiny.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    assert answers(tiny, [prune(tiny, Method(), prompt)], max_new_tokens=8) == [wanted]


def answers(tiny: Llava, prompts: list[PrunedPrompt], **options: Any) -> list[str]:
    return [each.text for each in forward.generate(tiny, Method(), prompts, **options)]


def num_hooks(tiny: Llava) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in tiny.model.modules())


KEPT = (0, 3, 4, 50, 77, 143)


def masked_logits(tiny: Llava, prompt: Prompt, kept: tuple[int, ...]) -> Tensor:
    """Run the full-length prompt with the dropped columns masked, positions unchanged; rows of survivors only."""
    start = prompt.spans[0][0]
    alive = ~visual_of(prompt)
    alive[[start + index for index in kept]] = True
    full = prune(tiny, Method(), prompt)
    length = len(prompt.ids_L)
    visible = torch.ones(length, length, dtype=torch.bool).tril() & alive[None, :]
    visible |= torch.eye(length, dtype=torch.bool)
    output = tiny.model(
        inputs_embeds=full.embeds_LD[None],
        attention_mask=visible[None, None],
        position_ids=torch.arange(length)[None],
    )
    return output.logits[0, alive]


@pytest.mark.parametrize("kept", [KEPT, ()], ids=["some", "none"])
def test_dropping_before_the_llm_equals_masking_at_the_same_positions(
    tiny: Llava, picture: Picture, kept: tuple[int, ...]
) -> None:
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    got = forward.logits(tiny, Method(), [prune(tiny, Chosen(chosen=kept, positions="original"), prompt)])[0]
    torch.testing.assert_close(got, masked_logits(tiny, prompt, kept), rtol=1e-9, atol=1e-9)


def test_gaps_in_positions_do_not_hide_anything_without_a_cache(tiny: Llava, picture: Picture) -> None:
    """transformers reads gaps as packed sequences where there is neither mask nor cache."""
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    pruned = prune(tiny, Chosen(chosen=KEPT, positions="original"), prompt)
    embeds, positions = pruned.embeds_LD[None], pruned.positions_PL
    wanted = masked_logits(tiny, prompt, KEPT)
    trapped = tiny.model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits[0]
    assert not torch.allclose(trapped, wanted, atol=1e-3), "the trap is gone from transformers: drop explicit_mask"
    with forward.explicit_mask(tiny):
        got = tiny.model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_generation_is_the_same_with_and_without_cache(tiny: Llava, picture: Picture, positions: str) -> None:
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    pruned = [prune(tiny, Chosen(chosen=KEPT, positions=positions), prompt)]
    cached = answers(tiny, pruned, max_new_tokens=8)
    assert answers(tiny, pruned, max_new_tokens=8, use_cache=False) == cached


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_left_padded_ragged_batch_equals_batch_one(tiny: Llava, picture: Picture, positions: str) -> None:
    pruned = [
        prune(tiny, Chosen(chosen=kept, positions=positions), tiny.prompt([picture(n)], QUESTIONS[n % 2]))
        for n, kept in enumerate((KEPT, (9,), tuple(range(0, 144, 5))))
    ]
    together = forward.logits(tiny, Method(), pruned)
    for row, each in zip(together, pruned, strict=True):
        alone = forward.logits(tiny, Method(), [each])[0]
        torch.testing.assert_close(row[-len(alone) :], alone, rtol=1e-9, atol=1e-9)
    told = answers(tiny, pruned, max_new_tokens=6)
    assert told == [answers(tiny, [each], max_new_tokens=6)[0] for each in pruned]


def test_position_ids_are_compact_or_original(tiny: Llava, picture: Picture) -> None:
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    start, length = prompt.spans[0][0], len(prompt.ids_L)
    compact = prune(tiny, Chosen(chosen=KEPT), prompt).positions_PL[0]
    original = prune(tiny, Chosen(chosen=KEPT, positions="original"), prompt).positions_PL[0]
    assert compact.tolist() == list(range(length - 144 + len(KEPT)))
    assert original.tolist() == [*range(start), *(start + k for k in KEPT), *range(start + 144, length)]


def test_hooks_are_gone_after_an_error(tiny: Llava, picture: Picture) -> None:
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    pruned = prune(tiny, Method(), prompt)
    broken = replace(pruned, embeds_LD=pruned.embeds_LD[:, :5])
    before = num_hooks(tiny)
    with pytest.raises(RuntimeError):
        forward.logits(tiny, Method(), [broken])
    assert num_hooks(tiny) == before


@pytest.mark.parametrize(
    ("indices", "positions", "message"),
    [
        ((0, 144), "compact", "outside"),
        ((-2,), "compact", "outside"),
        ((0, -1), "original", "compact positions"),
        ((0, -1), "compact", "must bring"),
    ],
)
def test_a_decision_that_breaks_the_contract_is_refused(
    tiny: Llava, picture: Picture, indices: tuple[int, ...], positions: str, message: str
) -> None:
    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    with pytest.raises(ValueError, match=message):
        prune(tiny, Chosen(chosen=indices, positions=positions), prompt)


def test_rows_given_in_tower_space_are_projected(tiny: Llava, picture: Picture) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Tower(Method):
        def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
            return Reduction(torch.full((2,), -1), hidden_KC=visual.hidden_NC[:2])

    prompt = tiny.prompt([picture(1)], QUESTIONS[0])
    merged = prune(tiny, Tower(), prompt)
    plain = prune(tiny, Chosen(chosen=(0, 1)), prompt)
    torch.testing.assert_close(merged.embeds_LD, plain.embeds_LD, rtol=1e-9, atol=1e-9)


def test_a_smaller_grid_goes_through_the_tower_once_and_no_further(tiny: Llava, picture: Picture) -> None:
    """The tower reads 48x40 pixels with interpolated position codes; the LLM reads 6 x 5 tokens."""
    prompt = decision.build_unpruned_prompt(
        tiny, registry.load("downsample"), [picture(1)], QUESTIONS[0], decision.Rule(BudgetRequest(keep=32))
    )
    assert prompt.pixels[0].values.shape[1:] in ((48, 40), (40, 48))
    assert prompt.spans[0][1] - prompt.spans[0][0] == 30
    (features,) = tiny.encode(prompt.pixels)
    pixels = prompt.pixels[0].values[None].double()
    wanted = tiny.model.model.vision_tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    assert torch.equal(features.hidden_NC, wanted.hidden_states[-2][0, 1:])
    pruned = prune(tiny, registry.load("downsample"), prompt, 32)
    inputs = {"input_ids": prompt.ids_L[None], "attention_mask": torch.ones_like(prompt.ids_L)[None]}
    embeds = tiny.model.get_input_embeddings()(inputs["input_ids"]).clone()
    embeds[0, prompt.spans[0][0] : prompt.spans[0][1]] = features.embeds_ND
    assert torch.equal(pruned.embeds_LD, embeds[0])


def test_randomness_depends_on_seed_sample_and_image_only() -> None:
    def first(seed: int, sample: str, image: int) -> float:
        return float(torch.rand(1, generator=decision.image_generator(seed, sample, image)))

    assert first(0, "pope/1", 0) == first(0, "pope/1", 0)
    assert len({first(0, "pope/1", 0), first(1, "pope/1", 0), first(0, "pope/2", 0), first(0, "pope/1", 1)}) == 4


AT_MOST = ("pool", "downsample", "dart")
"""Methods that cannot keep any number of tokens: rows that form a grid, or equal shares for a few pivots."""


@pytest.mark.parametrize("name", sorted(registry.methods()))
@pytest.mark.parametrize("keep", [1, 16, 144])
def test_every_method_meets_its_budget_and_answers(tiny: Llava, picture: Picture, name: str, keep: int) -> None:
    method = registry.load(name).untrained().bind(tiny)
    rule = decision.Rule(BudgetRequest(keep=keep), kind="final")
    prompt = decision.build_unpruned_prompt(tiny, method, [picture(1)], QUESTIONS[0], rule)
    once, again = (prune(tiny, method, prompt, keep, "final") for _ in range(2))
    read = once.allowed_per_layer(tiny.num_layers)[-1]
    assert read <= keep if name in AT_MOST else read == (144 if name == "none" else keep)
    kept = once.kept[0].indices_K
    assert torch.equal(kept, again.kept[0].indices_K)
    single = kept[kept >= 0]
    assert len(single.unique()) == len(single)
    assert forward.logits(tiny, method, [once]).isfinite().all()


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("name", ["none", "grid", "holov", "fastv"])
def test_the_tokens_of_a_prompt_are_those_its_rows_are_the_embeddings_of(family: str, name: str) -> None:
    """An image of two tiles and padding: tower order, reading order and what unpadding leaves all differ."""
    model = tinies.backbone(family)
    method = registry.load(name, {}).bind(model)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 150, 3), dtype=np.uint8))
    prompt = model.prompt([picture], QUESTIONS[0])
    (features,) = model.encode(prompt.pixels, method.needs(model.provides))
    rule = decision.Rule(BudgetRequest(prune_rate=0.5))
    cut = pruned_prompt.splice(model, method, prompt, [features], [decision.image_generator(0, "test", 0)], rule)
    (tokens,) = cut.tokens
    single = tokens >= 0
    rows = cut.embeds_LD[cut.visual_L]
    assert len(rows) == len(tokens)
    assert torch.equal(rows[single], features.embeds_ND[tokens[single]])
    (told,) = forward.generate(model, method, [cut], max_new_tokens=1)
    (alive,) = forward.last_indices(cut, told)
    assert len(alive) == cut.allowed_per_layer(model.num_layers)[-1]
    assert set(alive.tolist()) <= set(tokens.tolist())
