"""Cuts inside the LLM: keeping all changes no bit, dropping equals masking, on every family, kernel and batch."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone
from dpbench.engine import decision, dropping, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import UnsupportedError
from dpbench.method import Budget, Cut, LayerView, Method, Reduction, Spends

QUESTION = "Is there a red circle in the image?"


@dataclass(frozen=True, kw_only=True)
class Attended(Method):
    """Cut at the layers given, by the last prompt token's attention."""

    layers: tuple[int, ...] = (1, 3)
    keeps: tuple[int, ...] = (5, 2)
    behind: int = 1
    """How many layers before the cut it ranks."""

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        pairs = zip(self.layers, self.keeps, strict=True)
        return tuple(Cut(layer, min(keep, num_visual), layer - self.behind) for layer, keep in pairs)

    def rank(self, view: LayerView) -> Tensor:
        return view.attention()[:, 0].mean(0)[view.visual_index_N]


KEEP_ALL = {"layers": (1, 3), "keeps": (10_000, 10_000)}


@cache
def backbone(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Backbone:
    return tinies.backbone(family, dtype, attention)


def picture(seed: int, size: tuple[int, int] = (60, 100)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def prune(model: Backbone, method: Method, *images: Image.Image, text: str = QUESTION) -> PrunedPrompt:
    prompt = model.prompt(images, text)
    features = model.encode(prompt.pixels) if images else []
    generators = [decision.image_generator(0, "test", n) for n in range(len(images))]
    return pruned_prompt.splice(model, method, prompt, features, generators, decision.Rule())


def run(model: Backbone, method: Method, prompts: list[PrunedPrompt], **options: Any) -> Any:
    """Generate through transformers with whatever it offers, every step's logits kept."""
    batch = forward.collate(prompts)
    with torch.no_grad(), forward.drop_inside_llm(model, method, prompts) as state:
        out = model.model.generate(
            inputs_embeds=batch.embeds_BLD,
            attention_mask=batch.mask_BL,
            position_ids=model.position_ids(batch.positions_PBL, batch.mask_BL),
            return_dict_in_generate=True,
            output_logits=True,
            **({"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0} | options),
        )
    return out, state


def masked_reference(model: Backbone, method: Method, prompt: PrunedPrompt, state: Any, ids: Tensor) -> Tensor:
    """Run prompt and answer in full through the layers one by one, dropped columns masked from their cut on.

    Returns the logits of the last prompt position and of every answer position but the last.
    """
    decoder, length = model.decoder, len(prompt.embeds_LD)
    answer = decoder.embed_tokens(ids[:-1])
    hidden = torch.cat([prompt.embeds_LD, answer])[None]
    total = hidden.shape[1]
    later = prompt.positions_PL[:, -1:] + torch.arange(1, len(ids))
    positions = torch.cat([prompt.positions_PL, later], dim=1)
    alive = torch.ones(total, dtype=torch.bool)
    visual = prompt.visual_L.nonzero()[:, 0]
    survivors = dict(zip((cut.layer for cut in prompt.cuts), state.kept_rows()[0], strict=True))
    for number, layer in enumerate(decoder.layers):
        if number in survivors:
            alive[visual] = False
            alive[visual[survivors[number]]] = True
            if method.positions == "compact" and not model.mrope:
                positions = (alive.cumsum(0) - 1)[None]
        angles = decoder.rotary_emb(hidden, positions[:, None] if model.mrope else positions)
        mask = torch.ones(total, total, dtype=torch.bool).tril() & (alive | torch.eye(total, dtype=torch.bool))
        if decoder.config._attn_implementation == "eager":
            mask = torch.zeros(total, total, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=angles, position_ids=None)
    return model.model.lm_head(decoder.norm(hidden))[0, length - 1 :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_keeping_everything_changes_no_bit(family: str, attention: str, dtype: torch.dtype, positions: str) -> None:
    model = backbone(family, dtype, attention)
    plain = [
        prune(model, Method(), picture(1)),
        prune(model, Method(), picture(2, (100, 60)), text="And now ?"),
    ]
    method = Attended(**KEEP_ALL, positions=positions)
    cut = [
        prune(model, method, picture(1)),
        prune(model, method, picture(2, (100, 60)), text="And now ?"),
    ]
    batches = [(plain[:1], cut[:1]), (plain, cut)]
    if attention == "eager" and dtype == torch.float64:
        batches.pop()  # transformers itself answers NaN there: its softmax is float32, where padding rows are all -inf
    for prompts, pruned in batches:
        wanted, _ = run(model, Method(), prompts)
        got, state = run(model, method, pruned)
        assert len(state.stages) == 2
        assert all(torch.equal(a, b) for a, b in zip(got.logits, wanted.logits, strict=True))


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("keeps", [(5, 2), (6, 0)])
def test_a_cut_equals_masking_from_that_layer_on_in_every_step(
    family: str, attention: str, positions: str, behind: int, keeps: tuple[int, int]
) -> None:
    model = backbone(family, torch.float64, attention)
    method = Attended(positions=positions, behind=behind, keeps=keeps)
    prompt = prune(model, method, picture(1))
    out, state = run(model, method, [prompt])
    with torch.no_grad():
        wanted = masked_reference(model, method, prompt, state, out.sequences[0])
    close = 1e-6 if attention == "sdpa" else 5e-6  # eager's softmax is float32
    torch.testing.assert_close(torch.cat(out.logits), wanted.float(), rtol=1e-6, atol=close)
    assert [len(each) for each in state.kept_rows()[0]] == list(keeps)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_ragged_batch_equals_batches_of_one(family: str, positions: str) -> None:
    model = backbone(family)
    method = Attended(positions=positions, layers=(1, 2), keeps=(9, 4))
    prompts = [
        prune(model, method, picture(1)),
        prune(model, method, picture(2, (120, 40)), text="And a longer question about this very image ?"),
        prune(model, method, picture(3, (60, 60)), picture(4, (60, 60)), text="Two ?"),
    ]
    together, state = run(model, method, prompts)
    for number, prompt in enumerate(prompts):
        alone, single = run(model, method, [prompt])
        assert torch.equal(together.sequences[number], alone.sequences[0])
        for kept, wanted in zip(state.kept_rows()[number], single.kept_rows()[0], strict=True):
            assert torch.equal(kept, wanted)
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[number], b[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_prompts_that_lose_different_numbers_are_padded_and_masked(family: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Third(Attended):
        def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
            return (Cut(1, num_visual // 3, 0), Cut(2, num_visual // 4, 1))

    model, method = backbone(family), Third(positions="original")
    prompts = [
        prune(model, method, picture(1, (60, 60))),
        prune(model, method, picture(2), picture(3, (30, 90))),
    ]
    together, _ = run(model, method, prompts)
    for number, prompt in enumerate(prompts):
        alone, _ = run(model, method, [prompt])
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[number], b[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_the_decision_is_the_prompts_with_and_without_a_cache(family: str, positions: str) -> None:
    model, method = backbone(family), Attended(positions=positions)
    prompt = prune(model, method, picture(1))
    cached, one = run(model, method, [prompt])
    fresh, two = run(model, method, [prompt], use_cache=False)
    for a, b in zip(one.kept_rows()[0], two.kept_rows()[0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(cached.logits, fresh.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_beams_and_samples_are_those_of_each_prompt_alone(family: str, positions: str) -> None:
    model, method = backbone(family), Attended(positions=positions)
    prompts = [
        prune(model, method, picture(1)),
        prune(model, method, picture(2, (100, 60)), text="Other ?"),
    ]
    together, _ = run(model, method, prompts, num_beams=3, num_return_sequences=2)
    for number, prompt in enumerate(prompts):
        alone, _ = run(model, method, [prompt], num_beams=3, num_return_sequences=2)
        assert torch.equal(together.sequences[2 * number : 2 * number + 2], alone.sequences)
    greedy, _ = run(model, method, prompts[:1])
    sampled, _ = run(model, method, prompts[:1], do_sample=True, top_k=1, num_return_sequences=3)
    assert all(torch.equal(row, greedy.sequences[0]) for row in sampled.sequences)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_layers_behind_a_cut_cache_what_they_read(family: str) -> None:
    model, method = backbone(family), Attended()
    prompt = prune(model, method, picture(1))
    out, _ = run(model, method, [prompt])
    text, answered = int((~prompt.visual_L).sum()), 4
    lengths = [text + prompt.num_visual + answered, *[text + 5 + answered] * 2, text + 2 + answered]
    assert [out.past_key_values.get_seq_length(layer) for layer in range(4)] == lengths
    assert prompt.allowed_per_layer(4) == (prompt.num_visual, 5, 5, 2)


def num_hooks(model: Backbone) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.model.modules())


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_the_model_is_as_it_was_afterwards_also_after_an_error(family: str) -> None:
    model, method = backbone(family), Attended()
    prompt = prune(model, method, picture(1))
    plain = [prune(model, Method(), picture(1))]
    before, hooks = forward.logits(model, Method(), plain), num_hooks(model)
    broken = replace(prompt, embeds_LD=prompt.embeds_LD[:, :5])
    with forward.drop_inside_llm(model, method, [prompt]):
        assert num_hooks(model) > hooks
    with pytest.raises(RuntimeError):
        forward.logits(model, method, [broken])
    run(model, method, [prompt])
    assert num_hooks(model) == hooks
    assert torch.equal(forward.logits(model, Method(), plain), before)


def seen_views(model: Backbone, prompt: PrunedPrompt, behind: int) -> list[Any]:
    views: list[Any] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(Attended):
        def select(self, view: LayerView) -> Reduction:
            views.append(view)
            view.keys_HLd  # noqa: B018 - kept before later layers overwrite nothing
            return super().select(view)

    method = Watching(**KEEP_ALL, behind=behind)
    cut = PrunedPrompt(
        prompt.embeds_LD,
        prompt.positions_PL,
        prompt.visual_L,
        prompt.kept,
        prompt.tokens,
        method.cuts(prompt.num_visual, 4, Budget(1)),
    )
    forward.logits(model, method, [cut])
    return views


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("behind", [0, 1])
def test_attention_rows_equal_eager_attention(family: str, behind: int) -> None:
    """LLaVA is multi-head here, LLaVA-NeXT and Qwen2.5-VL share keys between query heads."""
    model, eager = backbone(family), backbone(family, torch.float64, "eager")
    prompt = prune(model, Method(), picture(1))
    batch = forward.collate([prompt])
    with torch.no_grad():
        wanted = eager.model(
            inputs_embeds=batch.embeds_BLD,
            attention_mask=batch.mask_BL,
            position_ids=eager.position_ids(batch.positions_PBL, batch.mask_BL),
            output_attentions=True,
        ).attentions
    for view in seen_views(model, prompt, behind):
        every = torch.arange(len(prompt.embeds_LD))
        full = wanted[view.cut.probe][0]
        torch.testing.assert_close(view.attention(every), full.float(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(view.attention(), full[:, -1:].float(), rtol=1e-5, atol=1e-7)
        assert torch.equal(view.visual_L, prompt.visual_L)
        assert torch.equal(view.text_index, (~prompt.visual_L).nonzero()[:, 0])
        torch.testing.assert_close(view.embeds_LD, prompt.embeds_LD)
        assert view.queries_HLd.shape == view.keys_HLd.shape == (4, len(every), 8)


def test_rows_merged_inside_the_llm_are_read_as_given() -> None:
    """A mean of three tokens behind the second survivor equals putting it there by hand."""
    model = backbone("llava")

    @dataclass(frozen=True, kw_only=True)
    class Merging(Method):
        def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
            return (Cut(2, 3, 2),)

        def select(self, view: LayerView) -> Reduction:
            visual = view.hidden_LD[view.visual_index_N]
            rows = torch.stack([visual[0], visual[4], visual[5:8].mean(0)])
            return Reduction(torch.tensor([0, 4, -1]), embeds_KD=rows)

    prompt = prune(model, Merging(), picture(1))
    got = forward.logits(model, Merging(), [prompt])
    decoder, start = model.decoder, int(prompt.visual_L.nonzero()[0])
    with torch.no_grad():
        hidden, length = prompt.embeds_LD[None], len(prompt.embeds_LD)
        angles = decoder.rotary_emb(hidden, torch.arange(length)[None])
        for layer in decoder.layers[:2]:
            hidden = layer(hidden, position_embeddings=angles)
        visual = hidden[0, start : start + 16]
        rows = [hidden[0, :start], visual[:1], visual[4:5], visual[5:8].mean(0, keepdim=True), hidden[0, start + 16 :]]
        hidden = torch.cat(rows)[None]
        angles = decoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        for layer in decoder.layers[2:]:
            hidden = layer(hidden, position_embeddings=angles)
        wanted = model.model.lm_head(decoder.norm(hidden))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_merged_rows_in_a_ragged_batch_are_causal_and_a_later_cut_sees_the_whole_prompt(family: str) -> None:
    """A merged row has the column of the row before it in the model's mask, which must not let that row look ahead."""
    model, seen = backbone(family), []

    @dataclass(frozen=True, kw_only=True)
    class Merging(Method):
        def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
            return (Cut(1, 6, 1, merged=3), Cut(2, 4, 2))

        def select(self, view: LayerView) -> Reduction:
            seen.append(view)
            visual = view.hidden_LD[view.visual_index_N]
            if view.stage:
                return Reduction(torch.tensor([0, 3, 4, 5]))
            rows = torch.cat([visual[:3], visual[3:6] * 2])
            return Reduction(torch.tensor([0, 1, 2, -1, -1, -1]), embeds_KD=rows)

    prompts = [
        prune(model, Merging(), picture(1)),
        prune(model, Merging(), picture(2), text="And a longer one ?"),
    ]
    together, state = run(model, Merging(), prompts)
    assert [each[-1].tolist() for each in state.kept_rows()] == [[0, -1, -1, -1]] * 2
    for number, prompt in enumerate(prompts):
        late: Any = seen[2 + number]
        assert (late.stage, len(late.visual_index_N)) == (1, 6)
        assert torch.equal(late.prompt.embeds_LD, prompt.embeds_LD)
        assert torch.equal(late.prompt.visual_index_N, prompt.visual_L.nonzero()[:, 0])
        assert torch.equal(late.prompt.text_index, (~prompt.visual_L).nonzero()[:, 0])
        alone, _ = run(model, Merging(), [prompt])
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[number], b[0], rtol=1e-6, atol=1e-6)


def test_what_cannot_be_cut_is_one_sentence() -> None:
    model, method = backbone("llava"), Attended()
    prompt = prune(model, method, picture(1))
    batch = forward.collate([prompt])

    def run_model(**options: Any) -> None:
        with torch.no_grad():
            model.model(inputs_embeds=batch.embeds_BLD, position_ids=batch.positions_PBL[0], **options)

    with pytest.raises(UnsupportedError, match="DynamicCache"):
        run(model, method, [prompt], cache_implementation="static")
    with pytest.raises(UnsupportedError, match="one prefill"), forward.drop_inside_llm(model, method, [prompt]):
        model.model(inputs_embeds=batch.embeds_BLD[:, :4])
    with forward.drop_inside_llm(model, Method(), [prune(model, Method(), picture(1))]):
        cache = model.model(inputs_embeds=batch.embeds_BLD, use_cache=True).past_key_values
    with pytest.raises(UnsupportedError, match="another prompt's"), forward.drop_inside_llm(model, method, [prompt]):
        run_model(past_key_values=cache)
    two = forward.collate([prompt, prompt])
    with (
        pytest.raises(UnsupportedError, match="3 prompts, 2 rows"),
        forward.drop_inside_llm(model, method, [prompt] * 3),
    ):
        model.model(inputs_embeds=two.embeds_BLD)


def test_an_image_in_a_later_turn_is_refused() -> None:
    model, method = backbone("llava"), Attended()
    prompt = prune(model, method, picture(1))
    batch = forward.collate([prompt])
    given = model.prompt([picture(2)], "And this ?")
    with forward.drop_inside_llm(model, method, [prompt]), torch.no_grad():
        cache = model.model(inputs_embeds=batch.embeds_BLD, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match="later turn"):
            model.model(
                input_ids=given.ids_L[None],
                pixel_values=given.pixels[0].values[None].double(),
                past_key_values=cache,
            )


def test_eager_attention_without_a_mask_is_refused() -> None:
    model, method = backbone("llava", torch.float64, "eager"), Attended()
    prompt = prune(model, method, picture(1))
    layout = dropping.PromptLayout((~prompt.visual_L).nonzero()[:, 0], prompt.visual_L.nonzero()[:, 0], prompt.cuts)
    hidden = prompt.embeds_LD[None]
    angles = model.decoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    with dropping.apply_cuts(model, method, [layout]), pytest.raises(UnsupportedError, match="not causal"):
        model.decoder.layers[1](hidden, attention_mask=None, position_embeddings=angles)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ((Cut(0, 3, 0),), "must come after"),
        ((Cut(4, 3, 3),), "must come after"),
        ((Cut(1, 3, 2),), "must come after"),
        ((Cut(2, 3, 1), Cut(2, 2, 1)), "must come after"),
        ((Cut(3, 3, 2), Cut(2, 2, 1)), "must come after"),
        ((Cut(1, 17, 0),), "keeps more"),
        ((Cut(1, 3, 0), Cut(2, 4, 1)), "keeps more"),
        ((Cut(1, 3, 0), Cut(3, 2, 0)), "must come after"),
    ],
)
def test_cuts_that_break_the_contract_are_bugs(cuts: tuple[Cut, ...], message: str) -> None:
    class Wrong(Method):
        def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
            return cuts

    with pytest.raises(ValueError, match=message):
        pruned_prompt.validate_cuts(Wrong(), 16, 4, Budget(3))


@pytest.mark.parametrize(("kind", "fits"), [("mean", Cut(1, 4, 0)), ("final", Cut(1, 7, 0))])
def test_a_method_is_held_to_its_budget_unless_it_spends_its_own(kind: Any, fits: Cut) -> None:
    """7 of 16 tokens over 4 layers: 16 + 3 * 4 = 28."""

    def method(cut: Cut, how: Spends = "per-image") -> Method:
        class OneCut(Method):
            spends = how

            def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
                return (cut,)

        return OneCut()

    assert pruned_prompt.validate_cuts(method(fits), 16, 4, Budget(7, kind)) == (fits,)
    over = Cut(1, fits.keep + 1, 0)
    with pytest.raises(ValueError, match="for a budget of 7"):
        pruned_prompt.validate_cuts(method(over), 16, 4, Budget(7, kind))
    assert pruned_prompt.validate_cuts(method(over, "own"), 16, 4, Budget(7, kind)) == (over,)
    assert pruned_prompt.validate_cuts(method(over, "on-average"), 16, 4, Budget(7, kind)) == (over,)


def test_what_layers_read_is_what_the_cuts_left_not_what_they_allowed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sparing(Attended):
        def select(self, view: LayerView) -> Reduction:
            return Reduction(torch.arange(view.cut.keep - 1))

    model = backbone("llava")
    prompt = prune(model, Sparing(), picture(1))
    (answer,) = forward.generate(model, Sparing(), [prompt], max_new_tokens=2)
    assert [len(rows) for rows in answer.kept_rows] == [4, 1]
    assert forward.survivors(model, Sparing(), prompt) == (4, 1)
    num = prompt.num_visual
    assert prompt.allowed_per_layer(4) == (num, 5, 5, 2)
    assert prompt.read_per_layer(4, (4, 1)) == (num, 4, 4, 1)


def test_a_selection_of_too_many_rows_is_a_bug() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Greedy(Attended):
        def select(self, view: LayerView) -> Reduction:
            return Reduction(torch.arange(view.cut.keep + 1))

    model = backbone("llava")
    with pytest.raises(ValueError, match="6 rows at a cut to 5"):
        forward.logits(model, Greedy(), [prune(model, Greedy(), picture(1))])


def test_prompts_without_images_are_answered_beside_those_that_are_cut() -> None:
    model, method = backbone("llava"), Attended()
    prompts = [prune(model, method, picture(1)), prune(model, method, text="Hello ?")]
    both = forward.generate(model, method, prompts, max_new_tokens=3)
    alone = [forward.generate(model, method, [each], max_new_tokens=3)[0] for each in prompts]
    assert [each.text for each in both] == [each.text for each in alone]
    assert len(both[0].kept_rows) == 2
    assert both[1].kept_rows == ()
