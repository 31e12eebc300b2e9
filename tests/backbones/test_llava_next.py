"""LLaVA-NeXT: the identity is transformers, tokens find their placeholders, budgets follow views and newlines."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpbench import backbones, registry
from dpbench.backbones import architectures
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Features
from dpbench.backbones.llava_next import MODEL, LlavaNext
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.method import Budget, Cut, LayerView, Method, Reduction, VisualTokens

QUESTION = "Is there a red circle in the image?"
SIZES = {"2x2": (112, 112), "1x3": (50, 160), "3x1": (160, 50), "1x2": (56, 112), "2x1": (110, 40), "odd": (90, 71)}
"""Height and width; "odd" is padded by pixels that fill no patch."""
GRIDS = {"2x2": (2, 2), "1x3": (1, 3), "3x1": (3, 1), "1x2": (1, 2), "2x1": (2, 1), "odd": (2, 2)}


@cache
def tiny() -> LlavaNext:
    made = tinies.backbone("llava_next")
    assert isinstance(made, LlavaNext)
    return made


@cache
def wide() -> LlavaNext:
    """The real tower's 24 x 24 patches and the real pinpoints, few and narrow layers."""
    config = tinies.config("llava_next")
    config.vision_config.image_size = 336
    config.image_grid_pinpoints = architectures.PINPOINTS
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MODEL._from_config(config, dtype=torch.float32).eval()
    return LlavaNext("wide", model, architectures.llava_next_processor())


@cache
def full_size() -> LlavaNext:
    """The published model without its weights."""
    model = architectures.random_model("llava-next", MODEL, device="meta", dtype="float16", attention="sdpa")
    return LlavaNext("llava-next", model, architectures.llava_next_processor())


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def prune(model: LlavaNext, method: Method, *images: Image.Image, rule: decision.Rule | None = None) -> PrunedPrompt:
    prompt = model.prompt(images, QUESTION)
    generators = [decision.image_generator(0, "test", n) for n in range(len(images))]
    return pruned_prompt.splice(model, method, prompt, model.encode(prompt.pixels), generators, rule or decision.Rule())


@pytest.mark.parametrize("names", [*((name,) for name in SIZES), ("2x2", "1x3"), ("3x1", "1x2", "odd")], ids="+".join)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_identity_equals_transformers_in_every_logit(names: tuple[str, ...], positions: str) -> None:
    model, images = tiny(), [picture(n, SIZES[name]) for n, name in enumerate(names)]
    inputs = model.processor(images=images, text=model.chat(len(images), QUESTION), return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**inputs.to(torch.float64)).logits
    method = Method(positions=positions)
    assert torch.equal(forward.logits(model, method, [prune(model, method, *images)]), wanted)


def test_identity_generates_what_transformers_generates() -> None:
    model, images = tiny(), [picture(1, SIZES["1x3"]), picture(2, SIZES["odd"])]
    inputs = model.processor(images=images, text=model.chat(2, QUESTION), return_tensors="pt").to(torch.float64)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    batch = forward.collate([prune(model, Method(), *images)])
    with torch.no_grad():
        wanted = model.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        got = model.model.generate(
            inputs_embeds=batch.embeds_BLD,
            attention_mask=batch.mask_BL,
            position_ids=model.position_ids(batch.positions_PBL, batch.mask_BL),
            **options,
        )
    assert torch.equal(got, wanted)


def slots_by_hand(size: tuple[int, int], grid: tuple[int, int], side: int) -> Tensor:
    """Return where each token stands: the base view, then the tiles' one map, cropped, a newline behind each row."""
    rows, columns = grid[0] * side, grid[1] * side
    scale = min(rows / size[0], columns / size[1])
    top, left = (rows - int(size[0] * scale + 1e-6)) // 2, (columns - int(size[1] * scale + 1e-6)) // 2
    slots = list(range(side * side))
    for tile in np.ndindex(*grid):
        for row, column in np.ndindex(side, side):
            y, x = tile[0] * side + row - top, tile[1] * side + column - left
            inside = 0 <= y < rows - 2 * top and 0 <= x < columns - 2 * left
            slots.append(side * side + y * (columns - 2 * left + 1) + x if inside else -1)
    return torch.tensor(slots)


@pytest.mark.parametrize("name", SIZES)
def test_tokens_stand_where_the_tiles_map_puts_them(name: str) -> None:
    model = tiny()
    (features,) = model.encode(model.prompt([picture(1, SIZES[name])], QUESTION).pixels)
    rows, columns = GRIDS[name]
    assert torch.equal(features.slot_N, slots_by_hand(SIZES[name], GRIDS[name], 4))
    assert torch.equal(features.read_N, features.slot_N >= 0)
    each = torch.arange(16)
    assert torch.equal(features.view_N, torch.arange(1 + rows * columns).repeat_interleave(16))
    assert torch.equal(features.row_N * 4 + features.col_N, each.repeat(1 + rows * columns))


@pytest.mark.parametrize("name", SIZES)
def test_slots_invert_the_layout(name: str) -> None:
    model = tiny()
    layout, slots = model.layout(SIZES[name]), model.slots(SIZES[name])
    read = (slots >= 0).nonzero()[:, 0]
    assert torch.equal(layout[slots[read]], read)
    assert int((layout >= 0).sum()) == len(read)
    (start, stop), *_ = model.prompt([picture(1, SIZES[name])], QUESTION).spans
    assert stop - start == len(layout)


@pytest.mark.parametrize(
    ("size", "grid", "newlines"),
    [((672, 672), (2, 2), 48), ((336, 1008), (1, 3), 24), ((1008, 336), (3, 1), 72), ((336, 672), (1, 2), 24)],
)
def test_a_real_sized_image_that_fills_its_tiles_is_read_whole(
    size: tuple[int, int], grid: tuple[int, int], newlines: int
) -> None:
    """A square 672 input has 2,880 patches and 48 newlines."""
    model = full_size()
    layout, slots = model.layout(size), model.slots(size)
    assert model.max_views == 5
    assert len(slots) == 576 * (1 + grid[0] * grid[1])
    assert (slots >= 0).all()
    assert int((layout < 0).sum()) == newlines
    assert torch.equal(slots, slots_by_hand(size, grid, 24))


def test_the_signals_of_each_view_equal_eager_attention() -> None:
    model, names = tiny(), ("2x2", "1x3")
    prompt = model.prompt([picture(n, SIZES[name]) for n, name in enumerate(names)], QUESTION)
    found = model.encode(prompt.pixels, frozenset(model.provides))
    tower = copy.deepcopy(model.core.vision_tower)
    tower.set_attn_implementation("eager")
    layer = model.tower.select_layer
    keys: list[Tensor] = []
    tower.encoder.layers[layer].self_attn.k_proj.register_forward_hook(lambda _m, _a, out: keys.append(out))
    for features, pixels in zip(found, prompt.pixels, strict=True):
        for view, values in enumerate(pixels.values.double()):
            with torch.no_grad():
                seen = tower(values[None], output_attentions=True, output_hidden_states=True)
            part = features.view_N == view
            got = features.cls_attention[layer][:, part]
            torch.testing.assert_close(got, seen.attentions[layer][0, :, 0, 1:].float(), rtol=1e-5, atol=1e-7)
            hidden = seen.hidden_states[layer + 1][0]
            assert features.cls_hidden_VC is not None
            torch.testing.assert_close(features.cls_hidden_VC[view], hidden[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(features.hidden_NC[part], hidden[1:], rtol=1e-5, atol=1e-6)
            assert features.keys_Nd is not None
            wanted = keys.pop()[0, 1:].view(16, 2, 16).mean(1)
            torch.testing.assert_close(features.keys_Nd[part], wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.project(features.hidden_NC), features.embeds_ND)


@dataclass(frozen=True, kw_only=True)
class Leading(Method):
    """Keep the first tokens it is shown; `told` logs how many it is shown and how many it may keep."""

    told: Callable[[tuple[int, int]], None] = lambda _: None

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        self.told((len(visual), keep))
        return Reduction(torch.arange(keep))


@dataclass(frozen=True, kw_only=True)
class OverAll(Leading):
    anyres: ClassVar[Literal["per-view", "global", "own"]] = "global"


@dataclass(frozen=True, kw_only=True)
class OnItsOwn(Leading):
    anyres: ClassVar[Literal["per-view", "global", "own"]] = "own"


def asked(method: type[Leading], size: tuple[int, int], rule: decision.Rule) -> tuple[list[tuple[int, int]], list[int]]:
    """Return what a method was asked per call, and how many rows of each view the LLM reads; every count is checked."""
    model, calls = wide(), list[tuple[int, int]]()
    pixels = model.prompt([picture(1, size)], QUESTION).pixels
    (features,) = model.encode(pixels)
    prompt = prune(model, method(told=calls.append), picture(1, size), rule=rule)
    kept = prompt.kept[0].indices_K
    read = kept[features.read_N[kept]]
    assert prompt.allowed_per_layer(4) == (len(read),) * 4
    return calls, features.view_N[read].bincount(minlength=int(features.view_N[-1]) + 1).tolist()


@pytest.mark.parametrize(
    ("size", "read"),
    [
        ((672, 672), [64] * 5),
        ((330, 1000), [64] * 4),
        ((1000, 330), [64] * 4),
        ((336, 672), [64] * 3),
        # Padding above the picture: of the 64 of an upper tile, which are its first rows, 40 resp. 0 are read.
        ((600, 640), [64, 40, 40, 64, 64]),
        ((640, 1000), [64, 0, 0, 64, 64]),
    ],
)
@pytest.mark.parametrize("budget", [{"keep": 320}, {"prune_rate": 8 / 9}])
def test_320_are_64_in_each_view_however_many_there_are(
    size: tuple[int, int], read: list[int], budget: dict[str, Any]
) -> None:
    calls, counts = asked(Leading, size, decision.Rule(BudgetRequest(**budget)))
    assert calls == [(576, 64)] * len(read)
    assert counts == read


def test_a_global_budget_is_shared_over_all_views() -> None:
    rule = decision.Rule(BudgetRequest(keep=320))
    assert asked(OverAll, (672, 672), rule) == ([(2880, 320)], [320, 0, 0, 0, 0])
    assert asked(Leading, (672, 672), decision.Rule(BudgetRequest(keep=320), anyres="global"))[0] == [(2880, 320)]
    assert asked(OnItsOwn, (336, 672), decision.Rule(BudgetRequest(keep=320), anyres="global"))[0] == [(1728, 320)]
    assert asked(OverAll, (672, 672), decision.Rule(BudgetRequest(prune_rate=0.9)))[0] == [(2880, 288)]


def test_a_method_that_shares_out_itself_gets_the_views_budgets_together() -> None:
    assert asked(OnItsOwn, (672, 672), decision.Rule(BudgetRequest(keep=320)))[0] == [(2880, 320)]
    assert asked(OnItsOwn, (330, 1000), decision.Rule(BudgetRequest(keep=320)))[0] == [(2304, 256)]
    assert asked(OnItsOwn, (336, 672), decision.Rule(BudgetRequest(prune_rate=8 / 9)))[0] == [(1728, 192)]


def test_the_two_images_of_a_prompt_have_a_budget_each() -> None:
    calls: list[tuple[int, int]] = []
    images = [picture(1, SIZES["2x2"]), picture(2, SIZES["1x2"])]
    prompt = prune(tiny(), Leading(told=calls.append), *images, rule=decision.Rule(BudgetRequest(keep=20)))
    assert calls == [(16, 4)] * 8
    assert prompt.num_visual == 4 * 5 + 4 * 3


def features_of(name: str) -> Features:
    (features,) = tiny().encode(tiny().prompt([picture(1, SIZES[name])], QUESTION).pixels)
    return features


@pytest.mark.parametrize("name", SIZES)
def test_newlines_kept_are_text_between_the_rows_in_placeholder_order(name: str) -> None:
    """Two tokens of each view are kept; the newlines stay where the map's rows end."""
    model, image, features = tiny(), picture(1, SIZES[name]), features_of(name)
    method = Leading(positions="original")
    prompt = prune(model, method, image, rule=decision.Rule(BudgetRequest(keep=10), newline="keep"))
    start, stop = model.prompt([image], QUESTION).spans[0]
    layout = model.layout(SIZES[name])
    kept = set(prompt.kept[0].indices_K[features.read_N[prompt.kept[0].indices_K]].tolist())
    wanted = [place for place, token in enumerate(layout.tolist()) if token == -1 or token in kept]
    inside = (prompt.positions_PL[0] >= start) & (prompt.positions_PL[0] < stop)
    assert (prompt.positions_PL[0, inside] - start).tolist() == wanted
    assert torch.equal(prompt.visual_L[inside], layout[wanted] >= 0)
    assert prompt.visual_L.sum() == prompt.num_visual == len(kept)
    rows = torch.where((layout[wanted] >= 0)[:, None], features.embeds_ND[layout[wanted]], model.core.image_newline)
    assert torch.equal(prompt.embeds_LD[inside], rows)


@pytest.mark.parametrize("name", SIZES)
def test_newlines_are_dropped_with_the_tokens_otherwise(name: str) -> None:
    model, image, features = tiny(), picture(1, SIZES[name]), features_of(name)
    prompt = prune(model, Leading(), image, rule=decision.Rule(BudgetRequest(keep=10)))
    kept = prompt.kept[0].indices_K
    start, stop = model.prompt([image], QUESTION).spans[0]
    text = len(model.prompt([image], QUESTION).ids_L) - (stop - start)
    assert len(prompt.embeds_LD) == text + prompt.num_visual
    assert torch.equal(prompt.embeds_LD[prompt.visual_L], features.embeds_ND[kept[features.read_N[kept]]])


def masked_logits(image: Image.Image, kept: list[int], newline: str) -> Tensor:
    """Run the whole prompt with the dropped columns masked, positions unchanged; the survivors' rows only."""
    model = tiny()
    prompt = model.prompt([image], QUESTION)
    layout = model.layout((image.height, image.width))
    alive = torch.ones(len(prompt.ids_L), dtype=torch.bool)
    stays = torch.isin(layout, torch.tensor(kept)) | ((layout < 0) & (newline == "keep"))
    alive[prompt.spans[0][0] : prompt.spans[0][1]] = stays
    visible = torch.ones(len(alive), len(alive), dtype=torch.bool).tril() & (alive | torch.eye(len(alive)).bool())
    with torch.no_grad():
        logits: Tensor = model.model(
            inputs_embeds=prune(model, Method(), image).embeds_LD[None],
            attention_mask=visible[None, None],
            position_ids=torch.arange(len(alive))[None],
        ).logits
    return logits[0, alive]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("newline", ["keep", "drop"])
def test_dropping_before_the_llm_equals_masking_at_the_same_positions(
    name: str, newline: Literal["keep", "drop"]
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class EveryThird(OverAll):
        """In the order of the placeholders, as it would be read unpruned."""

        def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
            chosen = torch.arange(0, len(visual), 3)
            return Reduction(chosen[visual.slot_N[chosen].argsort()])

    image = picture(1, SIZES[name])
    prompt = prune(tiny(), EveryThird(positions="original"), image, rule=decision.Rule(newline=newline))
    wanted = masked_logits(image, prompt.kept[0].indices_K.tolist(), newline)
    got = forward.logits(tiny(), Method(), [prompt])[0]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("newline", ["keep", "drop"])
def test_cuts_inside_the_llm_never_take_a_newline(name: str, newline: Literal["keep", "drop"]) -> None:
    seen: list[LayerView] = []

    @dataclass(frozen=True, kw_only=True)
    class Cutter(Method):
        def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
            return (Cut(1, 6, 1), Cut(3, 0, 3))

        def rank(self, view: LayerView) -> Tensor:
            seen.append(view)
            return view.hidden_LD[view.visual_index_N, 0]

    model, image, features = tiny(), picture(1, SIZES[name]), features_of(name)
    prompt = prune(model, Cutter(), image, rule=decision.Rule(newline=newline))
    num_newlines = int((model.layout(SIZES[name]) < 0).sum())
    assert prompt.allowed_per_layer(4) == (features.num_read, 6, 6, 0)
    forward.logits(model, Cutter(), [prompt])
    for view, left in zip(seen, (features.num_read, 6), strict=True):
        newlines = (view.embeds_LD == model.core.image_newline).all(1).nonzero()[:, 0]
        assert len(newlines) == num_newlines
        assert torch.isin(newlines, view.text_index).all()
        assert len(view.visual_index_N) == left


@pytest.mark.parametrize("newline", ["keep", "drop"])
def test_none_reads_everything_and_every_newline(newline: Literal["keep", "drop"]) -> None:
    image = picture(1, SIZES["odd"])
    prompt = prune(tiny(), registry.load("none"), image, rule=decision.Rule(newline=newline))
    assert len(prompt.embeds_LD) == len(tiny().prompt([image], QUESTION).ids_L)
    assert prompt.num_visual == features_of("odd").num_read


@pytest.mark.parametrize("newline", ["keep", "drop"])
def test_merged_rows_stand_behind_the_token_before_them(newline: Literal["keep", "drop"]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Merging(Method):
        """Per view one token and the mean of all, the latter in tower space."""

        def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
            rows = torch.stack([visual.hidden_NC[5], visual.hidden_NC.mean(0)])
            return Reduction(torch.tensor([5, -1]), hidden_KC=rows)

    model, image, features = tiny(), picture(1, SIZES["1x3"]), features_of("1x3")
    prompt = prune(model, Merging(), image, rule=decision.Rule(BudgetRequest(keep=10), newline=newline))
    means = [features.hidden_NC[features.view_N == view].mean(0) for view in range(4)]
    single = [features.hidden_NC[5 + 16 * view] for view in range(4)]
    wanted = model.project(torch.stack([row for pair in zip(single, means, strict=True) for row in pair]))
    torch.testing.assert_close(prompt.embeds_LD[prompt.visual_L], wanted, rtol=1e-9, atol=1e-9)
    assert prompt.kept[0].indices_K.tolist() == [5, -1, 21, -1, 37, -1, 53, -1]


@pytest.mark.parametrize("whose", ["transformers", "llava"])
@pytest.mark.parametrize("side", [100, 336])
def test_a_small_square_lies_in_the_tall_grid_of_llava_and_in_the_wide_one_of_transformers(
    side: int, whose: str
) -> None:
    model = backbones.load("llava-next", weights="random", device="meta", grids=whose)
    assert isinstance(model, LlavaNext)
    half, first_tile, second_tile = torch.arange(12), 576, 2 * 576
    tall = first_tile + 12 * 24 + torch.arange(24)
    wide = torch.cat([first_tile + 12 + half, second_tile + half])
    first_row = model.layout((side, side))[576 : 576 + 25]
    assert first_row.tolist() == [*(tall if whose == "llava" else wide).tolist(), -1]
    (pixels,) = model.preprocess([picture(1, (side, side))])
    black = [pixels.values[1, 0, :80].std(), pixels.values[1, 0, :, :80].std()]
    assert black[0 if whose == "llava" else 1] < 1e-4 < black[1 if whose == "llava" else 0]


def best_grid_of_llava(width: int, height: int) -> tuple[int, int]:
    """LLaVA's rule: of the (width, height) listed, most pixels of the image, then fewest wasted, then the first."""

    def rank(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[0] / width, size[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, -(size[0] * size[1] - effective)

    return max([(first, second) for first, second in architectures.PINPOINTS], key=rank)


def test_llavas_grids_are_those_of_its_rule_for_every_size() -> None:
    from transformers.image_processing_utils import select_best_resolution

    model = backbones.load("llava-next", weights="random", device="meta", grids="llava")
    assert isinstance(model, LlavaNext)
    assert (
        model.model.config.image_grid_pinpoints
        == model.pinpoints
        == model.processor.image_processor.image_grid_pinpoints
    )
    for width, height in [*np.random.default_rng(0).integers(20, 1500, (400, 2)).tolist(), [50, 50], [336, 336]]:
        grid_w, grid_h = best_grid_of_llava(width, height)
        assert tuple(select_best_resolution((height, width), model.pinpoints)) == (grid_h, grid_w)


def test_vicuna_v1_is_the_conversation_of_the_vicunas_alone() -> None:
    for name, is_vicuna in (("llava-next", True), ("llava-next-13b", True), ("llava-next-mistral", False)):
        model = backbones.load(name, weights="random", device="meta")
        expected = f"{backbones.VICUNA_V1} USER: <image>\n{QUESTION} ASSISTANT:"
        assert (model.chat(1, QUESTION) == expected) is is_vicuna


THIN = [(3, 50), (50, 3), (1, 300), (200, 1)]
"""Height and width of images whose tiles hold padding only."""


@pytest.mark.parametrize("size", THIN, ids=str)
def test_an_image_so_thin_that_no_tile_token_is_left_equals_transformers(size: tuple[int, int]) -> None:
    model, image = tiny(), picture(1, size)
    inputs = model.processor(images=[image], text=[model.chat(1, QUESTION)], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        expected = model.model(**inputs).logits
    spliced = prune(model, Method(), image)
    batch = forward.collate([spliced])
    assert torch.equal(model.logits(batch.embeds_BLD, None, batch.positions_PBL), expected)


@pytest.mark.parametrize("size", THIN[:2], ids=str)
@pytest.mark.parametrize("newline", [pytest.param("keep", marks=pytest.mark.slow), "drop"])
@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_every_method_answers_about_a_thin_image(
    name: str, newline: Literal["keep", "drop"], size: tuple[int, int]
) -> None:
    params = {"relevance": "words"} if name == "cdpruner" else {}
    model = tiny()
    method = registry.load(name, params).untrained().bind(model)
    rule = decision.Rule(BudgetRequest(keep=8), newline=newline)
    image = picture(1, size)
    prompt = decision.build_unpruned_prompt(model, method, [image], QUESTION, rule)
    features = model.encode(prompt.pixels, method.needs(model.provides))
    generators = [decision.image_generator(0, "test", 0)]
    spliced = pruned_prompt.splice(model, method, prompt, features, generators, rule)
    (answer,) = forward.generate(model, method, [spliced], max_new_tokens=2)
    read = spliced.allowed_per_layer(model.num_layers)
    assert 0 < max(read) <= 16
    assert isinstance(answer.text, str)


@pytest.mark.parametrize("name", ["visionzip", "prunesid"])
def test_under_parity_padding_that_is_kept_is_read_by_the_llm_and_counted(name: str) -> None:
    """As in the official codes: every view's share is read in full, though half of the tiles is padding."""
    model, image = tiny(), picture(3, (100, 20))
    rule = decision.Rule(BudgetRequest(keep=75))
    rows, mixed = {}, {}
    for parity in (True, False):
        method = registry.load(name, {"parity": parity}).bind(model)
        prompt = decision.build_unpruned_prompt(model, method, [image], QUESTION, rule)
        features = model.encode(prompt.pixels, method.needs(model.provides))
        assert not features[0].read_N.all(), "the picture has padding"
        generators = [decision.image_generator(0, "test", 0)]
        spliced = pruned_prompt.splice(model, method, prompt, features, generators, rule)
        (decided,) = spliced.kept
        rows[parity], mixed[parity] = int(spliced.visual_L.sum()), int((decided.indices_K < 0).sum())
        assert spliced.allowed_per_layer(model.num_layers) == (rows[parity],) * model.num_layers
    num_views = int(features[0].view_N.max()) + 1
    assert rows[False] < rows[True] == num_views * (75 // model.max_views)
    assert mixed[True] > mixed[False], "padding that is read stands as a row of its own"
