"""Qwen2.5-VL: the identity is transformers, windows are undone, survivors keep M-RoPE's positions."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Features, Prompt
from dpbench.backbones.qwen2_5_vl import Qwen25VL, column_mean
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens

QUESTION = "Is there a red circle in the image?"
SIZES = ((170, 230), (84, 300), (60, 56))
"""Height and width: 6 x 8, 3 x 11 and 2 x 2 tokens; a window holds 4 x 4, so that only the last is in raster order."""
TOKENS = ((6, 8), (3, 11), (2, 2))
FIVE = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@cache
def tiny() -> Qwen25VL:
    made = tinies.backbone("qwen2_5_vl")
    assert isinstance(made, Qwen25VL)
    return made


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def pictures(count: int) -> list[Image.Image]:
    return [picture(n, size) for n, size in enumerate(SIZES[:count])]


def encoded(prompt: Prompt, needs: frozenset[str] = frozenset()) -> list[Features]:
    return tiny().encode(prompt.pixels, needs)


def prune(method: Method, images: Sequence[Image.Image], rule: decision.Rule | None = None) -> PrunedPrompt:
    prompt = tiny().prompt(images, QUESTION)
    generators = [decision.image_generator(0, "test", n) for n in range(len(images))]
    return pruned_prompt.splice(tiny(), method, prompt, encoded(prompt), generators, rule or decision.Rule())


def generated(prompts: list[PrunedPrompt]) -> Any:
    batch = forward.collate(prompts)
    with torch.no_grad():
        return tiny().model.generate(
            inputs_embeds=batch.embeds_BLD,
            attention_mask=batch.mask_BL,
            position_ids=tiny().position_ids(batch.positions_PBL, batch.mask_BL),
            return_dict_in_generate=True,
            output_logits=True,
            **FIVE,
        )


def inputs(images: list[Image.Image]) -> Any:
    """What transformers' own processor makes of a conversation."""
    return tiny().processor(images=images, text=[tiny().chat(len(images), QUESTION)], return_tensors="pt")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_identity_equals_transformers_in_every_logit(count: int, positions: str) -> None:
    with torch.no_grad():
        wanted = tiny().model(**inputs(pictures(count))).logits
    method = Method(positions=positions)
    assert torch.equal(forward.logits(tiny(), method, [prune(method, pictures(count))]), wanted)


@pytest.mark.parametrize("count", [1, 2])
def test_identity_generates_what_transformers_generates(count: int) -> None:
    given = inputs(pictures(count))
    with torch.no_grad():
        out = tiny().model.generate(**given, return_dict_in_generate=True, output_logits=True, **FIVE)
    got = generated([prune(Method(), pictures(count))])
    assert torch.equal(got.sequences, out.sequences[:, given["input_ids"].shape[1] :])
    assert all(torch.equal(a, b) for a, b in zip(got.logits, out.logits, strict=True))


def test_tokens_are_in_raster_order_as_mrope_numbers_them() -> None:
    prompt = tiny().prompt(pictures(3), QUESTION)
    assert prompt.positions_PL is not None
    for features, (start, stop), (height, width) in zip(encoded(prompt), prompt.spans, TOKENS, strict=True):
        assert torch.equal(features.row_N * width + features.col_N, torch.arange(height * width))
        time, row, column = prompt.positions_PL[:, start:stop]
        assert torch.equal(row - time, features.row_N)
        assert torch.equal(column - time, features.col_N)
        assert stop - start == len(features.embeds_ND) == height * width
        assert torch.equal(features.slot_N, torch.arange(height * width))


def test_embeddings_are_transformers_own_and_the_projected_hidden_states() -> None:
    prompt = tiny().prompt(pictures(3), QUESTION)
    given = inputs(pictures(3))
    with torch.no_grad():
        wanted = tiny().core.get_image_features(given["pixel_values"].double(), given["image_grid_thw"]).pooler_output
    for features, embeds in zip(encoded(prompt), wanted, strict=True):
        assert torch.equal(features.embeds_ND, embeds)
        torch.testing.assert_close(tiny().project(features.hidden_NC), embeds, rtol=1e-9, atol=1e-9)


def test_encoding_together_equals_encoding_alone() -> None:
    prompt = tiny().prompt(pictures(3), QUESTION)
    for features, pixels in zip(encoded(prompt, tiny().provides), prompt.pixels, strict=True):
        (alone,) = tiny().encode([pixels], tiny().provides)
        for name in ("embeds_ND", "hidden_NC", "received_attention_N"):
            torch.testing.assert_close(getattr(features, name), getattr(alone, name), rtol=1e-6, atol=1e-9)


def test_the_attention_received_and_the_keys_are_eager_attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is transformers' own: what it does to rows that hold their number in the merger."""
    given = inputs(pictures(3))
    seen: list[tuple[Any, Tensor]] = []
    rotated: list[tuple[Any, Tensor]] = []
    real = modeling_qwen2_5_vl.eager_attention_forward

    def watching(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        output, weights = real(module, *args, **kwargs)
        seen.append((module, weights))
        rotated.append((module, args[1]))
        return output, weights

    monkeypatch.setattr(modeling_qwen2_5_vl, "eager_attention_forward", watching)
    tower = copy.deepcopy(tiny().core.visual)
    tower.set_attn_implementation("eager")
    tower.merger.register_forward_hook(lambda _m, _a, output: torch.arange(len(output))[:, None])
    with torch.no_grad():
        order = tower(given["pixel_values"].double(), given["image_grid_thw"]).pooler_output[:, 0]
    last = tower.blocks[2].attn
    wanted = torch.cat([each[0].mean((0, 1)).view(-1, 4).mean(1) for module, each in seen if module is last])[order]
    assert not torch.equal(order, torch.arange(len(order))), "windows must matter here"
    found = encoded(tiny().prompt(pictures(3), QUESTION), frozenset({"received_attention_N", "keys_Nd"}))
    keys = torch.cat([each[0].mean(0).unflatten(0, (-1, 4)).mean(1) for module, each in rotated if module is last])
    got_keys = torch.cat([each.keys_Nd for each in found])  # type: ignore[misc]
    torch.testing.assert_close(got_keys, keys[order], rtol=1e-5, atol=1e-6)
    got = [each.received_attention_N for each in found]
    torch.testing.assert_close(torch.cat(got), wanted.float(), rtol=1e-5, atol=1e-8)  # type: ignore[arg-type]
    for each, (height, width) in zip(got, TOKENS, strict=True):
        assert each is not None
        torch.testing.assert_close(each.sum(), torch.tensor(0.25), msg=f"{height} x {width}")
    assert tiny().core.visual.config._attn_implementation == "sdpa"


def test_the_column_mean_does_not_depend_on_how_queries_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 3, 50, 8, generator=generator)
    wanted = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1).mean((0, 1))
    monkeypatch.setattr("dpbench.backbones.qwen2_5_vl._QUERY_BLOCK", 7)
    torch.testing.assert_close(column_mean(queries, keys), wanted)


def test_signals_that_were_not_asked_for_are_absent_and_cost_no_hook() -> None:
    (features,) = encoded(tiny().prompt(pictures(1), QUESTION))
    assert features.received_attention_N is None
    assert features.keys_Nd is None
    assert features.cls_hidden_VC is None
    assert features.cls_attention == {}
    encoded(tiny().prompt(pictures(1), QUESTION), tiny().provides)
    modules = tiny().model.modules()
    assert not any(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@dataclass(frozen=True, kw_only=True)
class EveryThird(Method):
    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        return Reduction(torch.arange(1, len(visual), 3))


def survivors(prompt: Prompt) -> Tensor:
    """Return which positions of the whole prompt `EveryThird` leaves, bool."""
    alive = torch.ones(len(prompt.ids_L), dtype=torch.bool)
    for start, stop in prompt.spans:
        alive[start:stop] = False
        alive[start + 1 : stop : 3] = True
    return alive


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_survivors_keep_their_mrope_positions_whatever_the_method_says(positions: str) -> None:
    prompt = tiny().prompt(pictures(2), QUESTION)
    assert prompt.positions_PL is not None
    got = prune(EveryThird(positions=positions), pictures(2)).positions_PL
    assert torch.equal(got, prompt.positions_PL[:, survivors(prompt)])


@pytest.mark.parametrize("count", [1, 2])
def test_every_step_equals_masking_and_decoding_goes_on_after_the_unpruned_length(count: int) -> None:
    whole, prompt = prune(Method(), pictures(count)), tiny().prompt(pictures(count), QUESTION)
    seen: list[Tensor] = []
    hook = tiny().decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["position_ids"][-3:]), with_kwargs=True
    )
    try:
        out = generated([prune(EveryThird(), pictures(count))])
    finally:
        hook.remove()
    later = whole.positions_PL[:, -1:] + torch.arange(1, 5)
    assert torch.equal(torch.cat(seen[1:], dim=-1)[:, 0], later)
    answer = out.sequences[0, :-1]
    alive = torch.cat([survivors(prompt), torch.ones(4, dtype=torch.bool)])
    visible = torch.ones(len(alive), len(alive), dtype=torch.bool).tril() & (alive | torch.eye(len(alive)).bool())
    text = torch.arange(len(alive))[None]
    with torch.no_grad():
        logits = (
            tiny()
            .model(
                inputs_embeds=torch.cat([whole.embeds_LD, tiny().embed(answer)])[None],
                attention_mask=visible[None, None],
                position_ids=torch.cat([text, torch.cat([whole.positions_PL, later], dim=1)])[:, None],
            )
            .logits[0]
        )
    torch.testing.assert_close(torch.cat(out.logits), logits[-5:].float(), rtol=1e-6, atol=1e-6)


def test_gaps_in_mrope_positions_hide_nothing_where_transformers_makes_the_mask() -> None:
    """Without mask and cache it takes a gap in the text axis for the start of another packed sequence."""
    prompt = prune(EveryThird(), pictures(2))
    batch = forward.collate([prompt])
    with torch.no_grad():
        bare = tiny().model(
            inputs_embeds=batch.embeds_BLD,
            position_ids=tiny().position_ids(batch.positions_PBL, batch.mask_BL),
            use_cache=False,
        )
    torch.testing.assert_close(bare.logits, forward.logits(tiny(), Method(), [prompt]), rtol=1e-9, atol=1e-9)


def test_prompts_of_different_sizes_in_a_batch_equal_each_alone() -> None:
    prompts = [prune(EveryThird(), pictures(2)), prune(EveryThird(), [picture(3, (60, 56))])]
    together = generated(prompts)
    for number, prompt in enumerate(prompts):
        alone = generated([prompt])
        assert torch.equal(together.sequences[number], alone.sequences[0])
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[number], b[0], rtol=1e-6, atol=1e-6)


def test_a_rate_is_of_each_images_own_tokens() -> None:
    counts: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Counting(Method):
        def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
            counts.append(keep)
            return Reduction(torch.arange(keep))

    assert prune(Counting(), pictures(3), decision.Rule(BudgetRequest(prune_rate=0.75))).num_visual == 12 + 8 + 1
    assert prune(Counting(), pictures(3), decision.Rule(BudgetRequest(keep=10))).num_visual == 10 + 10 + 4
    assert counts == [12, 8, 1, 10, 10, 4]


def test_pixel_bounds_change_how_many_tokens_an_image_has() -> None:
    model, image = tinies.backbone("qwen2_5_vl"), picture(1, (280, 280))

    def num_tokens(least: int | None, most: int | None) -> int:
        model.bound_pixels(least, most)
        (start, stop), *_ = model.prompt([image], QUESTION).spans
        return stop - start

    assert num_tokens(None, 10_000_000) == 100
    assert num_tokens(None, 25 * 28 * 28) == 25
    assert num_tokens(144 * 28 * 28, 10_000_000) == 144
    assert num_tokens(None, None) == 144, "a bound that is left out stays as it was"


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("bounds", [(784, None), (None, 784)])
def test_pixel_bounds_are_refused_where_images_have_a_size_of_their_own(
    family: str, bounds: tuple[int | None, int | None]
) -> None:
    model = tinies.backbone(family)
    with pytest.raises(UnsupportedError, match="remove the pixel bounds"):
        model.bound_pixels(*bounds)
    model.bound_pixels(None, None)
