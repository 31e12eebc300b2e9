"""DiffPrune as it is deployed: the top-k of its scorer's logits, view by view, at the original positions."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import bare_card
from PIL import Image
from torch import Tensor

from dpbench import registry
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.budget import BudgetRequest
from dpbench.diffprune import checkpoint
from dpbench.diffprune.method import DiffPrune
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.engine import decision, pruned_prompt
from dpbench.errors import ConfigError, MissingError
from dpbench.machine.cuda_graph import Graphed
from dpbench.method import Method, Reduction

QUESTION = "Is there a red circle in the image?"
backbone = cache(tinies.backbone)


@cache
def bound(family: str) -> Method:
    return registry.load("diffprune", {}).untrained().bind(backbone(family))


def picture(seed: int, size: tuple[int, int] = (60, 100)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(model: Backbone, *images: Image.Image) -> tuple[Prompt, list[Features]]:
    prompt = model.prompt(images, QUESTION)
    return prompt, model.encode(prompt.pixels)


def reduced(family: str, features: Features, rule: decision.Rule) -> Reduction:
    model, generator = backbone(family), decision.image_generator(0, "test", 0)
    visual = decision.visual_tokens(features, QUESTION, generator)
    return decision.reduce_image(bound(family), visual, rule, num_read=features.num_read, max_views=model.max_views)


def logits_of(family: str, features: Features) -> Tensor:
    """The scorer's logits, each view on its own, (V, n)."""
    scorer, views = bound(family).scorer, features.view_N.unique()
    with torch.no_grad():
        alone = [features.view_N == view for view in views]
        fields = (features.embeds_ND, features.row_N, features.col_N)
        return torch.cat([scorer(*(each[where][None] for each in fields)) for where in alone])


def highest(logits_N: Tensor, read_N: Tensor, num: int) -> list[int]:
    """The read tokens by falling logit, then the others in order; the first `num` of them, in order."""
    order = sorted(range(len(logits_N)), key=lambda n: (not read_N[n], -float(logits_N[n]) if read_N[n] else n))
    return sorted(order[:num])


def saved(folder: Path, backbone_name: str = "llava", width: int = 32) -> Scorer:
    """Write a checkpoint of random weights, other than those of an untrained one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        scorer = Scorer(ScorerSize(width=width, hidden=16, heads=2))
    checkpoint.save(folder, scorer, bare_card(backbone_name, scorer.size))
    return scorer


@pytest.mark.parametrize(("family", "keep"), [("llava", 5), ("qwen2_5_vl", 5), ("llava", 1), ("qwen2_5_vl", 1)])
def test_it_keeps_the_highest_logits_in_order(family: str, keep: int) -> None:
    features = encoded(backbone(family), picture(1))[1][0]
    found = reduced(family, features, decision.Rule(BudgetRequest(keep=keep)))
    logits = logits_of(family, features)[0]
    assert found.indices_K.tolist() == highest(logits, features.read_N, keep)
    torch.testing.assert_close(found.scores_N.clone(), logits, rtol=1e-9, atol=1e-9)
    assert len(logits.unique()) == len(logits)


@pytest.mark.parametrize("size", [(60, 100), (60, 60), (40, 200), (30, 70)])
@pytest.mark.parametrize("keep", [3, 20, 35, 60])
def test_every_view_keeps_its_share_of_read_tokens_while_there_are_some(size: tuple[int, int], keep: int) -> None:
    """A count is shared over the five views an image can have, however many this one has."""
    features = encoded(backbone("llava_next"), picture(1, size))[1][0]
    found = reduced("llava_next", features, decision.Rule(BudgetRequest(keep=keep))).indices_K
    logits, read = logits_of("llava_next", features), features.read_N.view(-1, 16)
    share = max(1, keep // 5)
    wanted = [16 * v + n for v in range(len(logits)) for n in highest(logits[v], read[v], share)]
    assert found.tolist() == wanted
    for view in range(len(logits)):
        kept = found[(found >= 16 * view) & (found < 16 * view + 16)]
        assert len(kept) == share
        assert int(features.read_N[kept].sum()) == min(share, int(read[view].sum()))


def test_some_token_that_is_never_read_would_rank_among_the_highest() -> None:
    """Or the test above would not tell that these are left out."""
    features = encoded(backbone("llava_next"), picture(1))[1][0]
    logits, read = logits_of("llava_next", features), features.read_N.view(-1, 16)
    first = torch.stack([~read[v][logits[v].topk(4).indices] for v in range(5)])
    assert first.any()


@pytest.mark.parametrize("keep", [1, 20, 48])
def test_the_global_rule_shares_the_budget_over_all_views(keep: int) -> None:
    features = encoded(backbone("llava_next"), picture(1))[1][0]
    found = reduced("llava_next", features, decision.Rule(BudgetRequest(keep=keep), anyres="global")).indices_K
    assert found.tolist() == highest(logits_of("llava_next", features).flatten(), features.read_N, keep)
    assert features.read_N[found].all()
    if keep == 20:
        assert len(set(torch.bincount(features.view_N[found], minlength=5).tolist())) > 1


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("anyres", ["per-view", "global"])
def test_a_decision_is_the_images_own(family: str, anyres: str) -> None:
    model, rule = backbone(family), decision.Rule(BudgetRequest(prune_rate=0.6), anyres=anyres)
    pictures = [picture(1), picture(2, (60, 60)), picture(3, (40, 200))]
    alone = [reduced(family, encoded(model, each)[1][0], rule).indices_K for each in pictures]
    _, features = encoded(model, *pictures)
    together = [reduced(family, each, rule).indices_K for each in features]
    again = [reduced(family, each, rule).indices_K for each in reversed(features)][::-1]
    for one, two, three in zip(alone, together, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_what_is_kept_stands_where_it_stood(family: str) -> None:
    model = backbone(family)
    prompt, features = encoded(model, picture(1))
    rule, generators = decision.Rule(BudgetRequest(prune_rate=0.6)), [decision.image_generator(0, "test", 0)]
    assert bound(family).positions == "original"
    spliced = pruned_prompt.splice(model, bound(family), prompt, features, generators, rule)
    start, stop = prompt.spans[0]
    slots = features[0].slot_N[reduced(family, features[0], rule).indices_K]
    slots = slots[slots >= 0].sort().values
    places = torch.cat([torch.arange(start), start + slots, torch.arange(stop, len(prompt.ids_L))])
    whole = prompt.positions_PL if model.mrope else torch.arange(len(prompt.ids_L))[None]
    assert torch.equal(spliced.positions_PL, whole[:, places])
    rows = features[0].embeds_ND[[features[0].slot_N.tolist().index(slot) for slot in slots.tolist()]]
    assert torch.equal(spliced.embeds_LD[spliced.visual_L], rows)


def test_compact_positions_can_be_asked_for() -> None:
    method = registry.load("diffprune", {"positions": "compact"}).untrained().bind(backbone("llava"))
    prompt, features = encoded(backbone("llava"), picture(1))
    generators = [decision.image_generator(0, "test", 0)]
    spliced = pruned_prompt.splice(
        backbone("llava"), method, prompt, features, generators, decision.Rule(BudgetRequest(keep=4))
    )
    assert spliced.positions_PL[0].tolist() == list(range(len(prompt.ids_L) - 16 + 4))


def test_an_untrained_scorer_is_the_same_every_time_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = registry.load("diffprune", {}).untrained().bind(backbone("llava"))
    assert torch.equal(torch.random.get_rng_state(), before)
    features = encoded(backbone("llava"), picture(1))[1][0]
    fields = (features.embeds_ND[None], features.row_N[None], features.col_N[None])
    assert torch.equal(again.scorer(*fields), bound("llava").scorer(*fields))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_what_serves(tmp_path: Path, dtype: torch.dtype) -> None:
    trained = saved(tmp_path)
    model = tinies.backbone("llava", dtype)
    method = registry.load("diffprune", {"checkpoint": str(tmp_path)})
    assert method.files("llava") == (tmp_path / "scorer.safetensors", tmp_path / "card.json")
    served = method.bind(model)
    assert method.scorer is None
    assert served.scorer.norm.weight.dtype == dtype
    assert served.scorer.head.weight.dtype == torch.float32
    features = encoded(model, picture(1))[1][0]
    visual = decision.visual_tokens(features, QUESTION, decision.image_generator(0, "test", 0))
    found = served.reduce(visual, 5)
    with torch.no_grad():
        wanted = trained(features.embeds_ND.float()[None], features.row_N[None], features.col_N[None])[0]
    assert found.scores_N.dtype == torch.float32
    close = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.scores_N.clone(), wanted, rtol=0, atol=close)
    assert wanted.std() > 0.2


def test_an_untrained_scorer_has_no_files() -> None:
    method = registry.load("diffprune", {"checkpoint": "untrained"})
    assert method == registry.load("diffprune", {}).untrained()
    with pytest.raises(ConfigError) as raised:
        method.files("llava")
    assert str(raised.value) == (
        "--param checkpoint=untrained: its answers mean nothing; use it with profile and check only"
    )


def test_a_checkpoint_for_another_backbone_is_refused_before_anything_loads_and_again_then(tmp_path: Path) -> None:
    saved(tmp_path, "llava-1.5")
    method = registry.load("diffprune", {"checkpoint": str(tmp_path)})
    for refuse in (lambda: method.files("llava"), lambda: method.bind(backbone("llava"))):
        with pytest.raises(ConfigError, match=r"trained for llava-1\.5, not for llava; train one with: dpbench train"):
            refuse()


def test_a_checkpoint_for_another_width_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, width=24)
    method = registry.load("diffprune", {"checkpoint": str(tmp_path)})
    with pytest.raises(ConfigError, match="reads tokens of width 24, the llava loaded here has 32"):
        method.bind(backbone("llava"))


def test_no_scorer_ships_for_a_miniature() -> None:
    method = registry.load("diffprune")
    for refuse in (lambda: method.files("llava"), lambda: method.bind(backbone("llava"))):
        with pytest.raises(MissingError, match="no scorer for llava ships with dpbench"):
            refuse()


@pytest.mark.parametrize("name", ["scorer", "num_views", "graphs"])
def test_what_a_method_is_bound_to_is_no_parameter(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        registry.load("diffprune", {name: 1})
    assert str(raised.value).startswith(f"--param: method 'diffprune' has no parameter {name!r}; ")


def test_a_bound_method_is_equal_to_the_one_it_came_from_and_can_be_bound_again() -> None:
    method = registry.load("diffprune", {}).untrained()
    assert isinstance(method, DiffPrune)
    assert bound("llava") == method
    assert bound("llava").scorer is not None
    assert bound("llava").bind(backbone("qwen2_5_vl")).num_views == 1
    assert bound("llava").bind(backbone("llava_next")).num_views is None
    assert replace(bound("llava"), checkpoint="untrained").scorer is None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_the_graph_gives_the_same_logits_and_nothing_waits(dtype: torch.dtype) -> None:
    scorer = Scorer(ScorerSize(width=64)).deploy(torch.device("cuda"), dtype)
    replayed = Graphed(scorer)
    tokens, side = torch.randn(3, 1, 576, 64, device="cuda", dtype=dtype), torch.arange(576, device="cuda")[None]
    with torch.inference_mode():
        replayed(tokens[0], side // 24, side % 24)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pairs = [
                (replayed(each, side // 24, side % 24).clone(), scorer(each, side // 24, side % 24)) for each in tokens
            ]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for graphed, eager in pairs:
        torch.testing.assert_close(graphed, eager)
    assert not torch.equal(pairs[0][0], pairs[1][0])


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_on_a_gpu_the_decisions_of_the_graph_are_the_eager_ones(family: str) -> None:
    model = copy.deepcopy(backbone(family))
    model.model.to("cuda")
    eager = registry.load("diffprune", {}).untrained()
    replayed, plain = eager.graphed().bind(model), eager.bind(model)
    for keep in (3, 40):
        made = []
        for seed in (1, 2):
            _, (features,) = encoded(model, picture(seed))
            visual = decision.visual_tokens(features, QUESTION, torch.Generator())
            made.append((replayed.reduce(visual, keep), plain.reduce(visual, keep)))
        for one, other in made:
            assert torch.equal(one.indices_K, other.indices_K)
            torch.testing.assert_close(one.scores_N, other.scores_N)
        assert not torch.equal(made[0][0].scores_N, made[1][0].scores_N)
