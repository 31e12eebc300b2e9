"""CDPruner: vectors from the official code, the greedy choice against determinants, and a real CLIP checkpoint."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines import cdpruner
from dpbench_baselines.cdpruner import CDPruner
from golden_vectors import find_vectors, load_tensors
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from dpbench import backbones, registry
from dpbench.backbones import architectures, miniatures
from dpbench.backbones.llava import Llava
from dpbench.conformance.vectors import run
from dpbench.conformance.vectors.tokens import square_views
from dpbench.engine import decision
from dpbench.errors import ConfigError, MissingError, UnsupportedError
from dpbench.method import Method, VisualTokens

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("cdpruner")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_vectors_are_there() -> None:
    assert [run.check(CDPruner(), path).kind for path in GOLDENS] == ["aligned"] * 2


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_vector_passes(path: Path) -> None:
    done = run.check(registry.load("cdpruner"), path)
    assert done.passed, done.detail


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_pick_of_every_vector_in_its_order(path: Path) -> None:
    want = load_tensors(path)
    views, num, _ = want["features"].shape
    everything = torch.ones(views * num, dtype=torch.bool)
    raw_N = -cdpruner.mean_cosine(want["image_embeds"].flatten(0, 1), want["text_embeds"])
    relevance_VN = cdpruner.unit_range(raw_N, everything).view(views, num)
    scaled = normalize(want["features"].float(), dim=-1) * relevance_VN[..., None]
    kernel_VNN, open_VN = scaled @ scaled.mT, everything.view(views, num)
    picks_VK = cdpruner.greedy_map(kernel_VNN, relevance_VN, open_VN, int(want["n_keep"]))
    assert torch.equal(picks_VK, want["selected"])
    if views > 1:
        apart = torch.stack([cdpruner.unit_range(raw, everything[:num]) for raw in raw_N.view(views, num)])
        scaled = normalize(want["features"].float(), dim=-1) * apart[..., None]
        picks_VK = cdpruner.greedy_map(scaled @ scaled.mT, apart, open_VN, int(want["n_keep"]))
        assert not torch.equal(picks_VK, want["selected"]), "the range is that of all views together"


@pytest.mark.parametrize("name", ["features", "image_embeds", "text_embeds", "selected", "mask"])
def test_a_vector_with_other_content_fails(name: str, tmp_path: Path) -> None:
    with np.load(GOLDENS[1]) as arrays:
        changed = {key: arrays[key] for key in arrays.files}
    axis = 1 if name in ("features", "image_embeds") else -1
    other = 0 * changed[name] if name == "selected" else np.flip(changed[name], axis)
    np.savez(tmp_path / "cdpruner_x.npz", **changed | {name: other})
    assert not run.check(CDPruner(), tmp_path / "cdpruner_x.npz").passed


def test_a_method_that_takes_no_towers_fails_its_vector() -> None:
    assert "no method 'comparing'" in run.check(registry.load("random"), GOLDENS[0]).detail


def test_each_pick_makes_the_determinant_largest() -> None:
    relevance_N = torch.rand(14, generator=torch.Generator().manual_seed(1)) + 0.1
    scaled = normalize(noise(14, 6, seed=2), dim=-1) * relevance_N[:, None]
    kernel = scaled @ scaled.T
    picks = cdpruner.greedy_map(kernel[None], relevance_N[None], torch.ones(1, 14, dtype=torch.bool), 5)[0].tolist()
    for step in range(5):
        chosen = picks[:step]
        rest = [n for n in range(14) if n not in chosen]
        best = max(rest, key=lambda n: float(torch.linalg.det(kernel.double()[[*chosen, n]][:, [*chosen, n]])))
        assert picks[step] == best


@pytest.mark.parametrize("rank", [1, 3])
def test_beyond_the_rank_the_most_relevant_follow(rank: int) -> None:
    """Copies of a few directions: after one of each, gains are rounding; upstream takes the root of a negative one."""
    relevance_N = torch.linspace(0.3, 1.0, 24)
    scaled = normalize(noise(rank, 8), dim=-1).repeat(24 // rank, 1) * relevance_N[:, None]
    picks = cdpruner.greedy_map((scaled @ scaled.T)[None], relevance_N[None], torch.ones(1, 24, dtype=torch.bool), 24)
    assert picks[0].sort().values.tolist() == list(range(24))
    assert picks[0, rank:].tolist() == sorted(picks[0, rank:].tolist(), reverse=True)


@pytest.mark.parametrize("num", [1, 5, 16, 47, 48, 96])
def test_every_way_of_picking_picks_the_same(num: int) -> None:
    """One by one in numpy, in blocks by LAPACK, and in torch, which a counter of FLOPs sees."""
    relevance_VN = torch.rand(2, 96, generator=torch.Generator().manual_seed(4)) + 0.1
    open_VN = torch.rand(2, 96, generator=torch.Generator().manual_seed(5)) > 0.1
    scaled = normalize(noise(2 * 96, 64).view(2, 96, 64), dim=-1) * (relevance_VN * open_VN)[..., None]
    kernel_VNN = scaled @ scaled.mT
    picks_VK = cdpruner.greedy_map(kernel_VNN, relevance_VN, open_VN, num)
    with FlopCounterMode(display=False) as counter:
        by_torch = cdpruner.greedy_map(kernel_VNN.clone(), relevance_VN, open_VN, num)
    assert torch.equal(picks_VK, by_torch)
    assert counter.get_total_flops() > 0 or num == 1
    for view, picks in enumerate(picks_VK.numpy()):
        closed = np.where(np.outer(open_VN[view], open_VN[view]), kernel_VNN[view].numpy(), np.float32(0))
        found = picks[picks >= 0]
        assert open_VN[view][found].all()
        rank = min(num, 64)  # beyond it gains are rounding, and relevance decides
        for way in (cdpruner._pick_one_by_one, cdpruner._pick_in_blocks):
            assert way(closed.copy(), num)[:rank].tolist() == found[:rank].tolist()


def test_of_equal_tokens_the_first_is_picked_even_when_all_are_kept() -> None:
    scaled = normalize(noise(6, 16), dim=-1).repeat_interleave(2, 0)
    picks = cdpruner.greedy_map((scaled @ scaled.T)[None], torch.ones(1, 12), torch.ones(1, 12, dtype=torch.bool), 6)
    assert all(pick % 2 == 0 for pick in picks[0].tolist())


def test_a_view_with_nothing_left_to_pick_says_so() -> None:
    open_VN = torch.tensor([[True, False, True], [True, True, True]])
    kernel = torch.eye(3).expand(2, 3, 3)
    picks = cdpruner.greedy_map(kernel, torch.ones(2, 3), open_VN, 3)
    assert picks.tolist() == [[0, 2, -1], [0, 1, 2]]


def test_relevance_is_brought_to_one_range() -> None:
    read_N = torch.tensor([True, True, True, False])
    got = cdpruner.unit_range(torch.tensor([-0.3, 0.1, -0.1, 9.0]), read_N)
    torch.testing.assert_close(got, torch.tensor([2.5e-6, 1.0, 0.5, 0.0]), rtol=1e-4, atol=1e-6)
    assert cdpruner.unit_range(torch.full((3,), 0.25), read_N[:3]).tolist() == [1.0] * 3


def image(num_views: int, **fields: Any) -> VisualTokens:
    return replace(square_views(num_views, 2, 0, embeds_ND=noise(num_views * 16, 8)), **fields)


@pytest.mark.parametrize("keep", [1, 2, 3, 7, 15, 48])
def test_a_budget_that_views_do_not_divide_is_met(keep: int) -> None:
    visual = image(3)
    indices = CDPruner(relevance="none").reduce(visual, keep).indices_K
    assert len(indices.unique()) == len(indices) == keep
    counts = torch.bincount(visual.view_N[indices], minlength=3).tolist()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    assert visual.slot_N[indices].tolist() == sorted(visual.slot_N[indices].tolist())


def test_padding_takes_no_part() -> None:
    read_N = torch.arange(48) % 16 < 12
    read_N[:16] = True
    indices = CDPruner(relevance="none").reduce(image(3, read_N=read_N), 42).indices_K
    assert read_N[indices].all()
    assert len(indices) == 14 + 12 + 12


def test_a_blank_image_is_answered() -> None:
    visual = image(1, embeds_ND=torch.ones(16, 8))
    assert CDPruner(relevance="none").reduce(visual, 5).indices_K.tolist() == [0, 1, 2, 3, 4]
    assert len(CDPruner(relevance="none").reduce(image(1, embeds_ND=torch.zeros(16, 8)), 5).indices_K.unique()) == 5


def test_without_a_text_tower_it_is_refused_in_one_sentence(tiny: Llava) -> None:
    plain = CDPruner()
    for refused in (lambda: plain.files("toy-llava"), lambda: plain.bind(backbones.load("toy-llava"))):
        with pytest.raises(
            UnsupportedError, match="toy-llava's vision tower never had a text tower; --param relevance=words"
        ):
            refused()
    with pytest.raises(
        UnsupportedError, match="needs a CLIP vision tower, and this backbone has none; --param relevance=words"
    ):
        plain.needs(frozenset({"received_attention_N"}))
    with pytest.raises(ConfigError, match="after bind"):
        plain.reduce(image(1), 4)
    with pytest.raises(ConfigError, match="its answers mean nothing"):
        plain.untrained().files("llava-1.5")
    for params in ({"relevance": "words"}, {"relevance": "none"}):
        method = registry.load("cdpruner", params)
        assert method.needs(frozenset()) == frozenset()
        assert method.files("toy-llava") == ()
        assert method.untrained() == method
    with pytest.raises(ConfigError, match="no effect with relevance=none"):
        registry.load("cdpruner", {"relevance": "none", "clip": "somewhere"})


def test_a_missing_clip_model_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="hf download openai/clip-vit-large-patch14-336"):
        CDPruner().files("llava-1.5")
    with pytest.raises(MissingError, match="nor a valid hub repository name"):
        CDPruner(clip="a/b/c").files("llava-1.5")
    with pytest.raises(MissingError, match=r"lacks config\.json"):
        CDPruner(clip=str(tmp_path)).files("llava-1.5")


QUESTION = "is there a red circle in the image ? and a blue square or not ?"


@cache
def clip_model(width: int) -> CLIPModel:
    """A CLIP of random weights whose text tower reads 8 tokens at a time."""
    ids = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = ids | {"vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared = {"projection_dim": 12}
    config = CLIPConfig(text_config=text | shared, vision_config=vision | shared | {"image_size": 28}, **shared)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPModel(config).eval()


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A CLIP checkpoint as `save_pretrained` writes it."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *QUESTION.split()]
    ids = {word: n for n, word in enumerate(dict.fromkeys(words))}
    clip_model(32).save_pretrained(tmp_path)
    architectures.word_tokenizer(ids, pad="<pad>", eos="</s>", bos="<s>").save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_relevance_is_that_of_transformers_own_clip(tiny: Llava, clip_folder: Path) -> None:
    """Sixteen words are three pieces of eight, the last filled up; minus the cosine, mean over pieces."""
    method = registry.load("cdpruner", {"clip": str(clip_folder)})
    assert {path.name for path in method.files("toy-llava")} == {"model.safetensors", "config.json", "tokenizer.json"}
    bound = method.bind(tiny)
    hidden_NC = noise(16, 32)
    visual = image(1, hidden_NC=hidden_NC, question=QUESTION)
    model = clip_model(32)
    patches = model.visual_projection(model.vision_model.post_layernorm(hidden_NC))
    words = [1, *(4 + list(dict.fromkeys(QUESTION.split())).index(word) for word in QUESTION.split())]
    ids = torch.tensor(words + [0] * (-len(words) % 8)).view(-1, 8)
    real = (torch.arange(ids.numel()) < len(words)).long().view(-1, 8)
    assert len(ids) == 3
    pooled = model.text_projection(model.text_model(input_ids=ids, attention_mask=real).pooler_output)
    raw_N = -cosine_similarity(patches[:, None], pooled[None], dim=-1).mean(-1)
    wanted = (raw_N - raw_N.min() + 1e-6) / (raw_N.max() - raw_N.min())
    assert bound.reduce(visual, 4).scores_N is not None
    torch.testing.assert_close(bound.reduce(visual, 4).scores_N, wanted, rtol=1e-4, atol=1e-5)
    other = bound.reduce(replace(visual, question="is there a square ?"), 4)
    assert not torch.equal(other.scores_N, bound.reduce(visual, 4).scores_N)  # type: ignore[arg-type]


def test_a_clip_model_of_another_width_is_refused(clip_folder: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"vision tower of toy-llava is 128 wide and that of the CLIP model .* 32"
    ):
        CDPruner(clip=str(clip_folder)).bind(backbones.load("toy-llava"))


def test_words_are_compared_in_the_embedding_space(tiny: Llava) -> None:
    bound = CDPruner(relevance="words").bind(tiny)
    tokenizer = tiny.processor.tokenizer
    (ids,) = tokenizer(["red circle"], add_special_tokens=False)["input_ids"]
    embeds = tiny.decoder.embed_tokens.weight.detach()[ids]
    rows = torch.cat([noise(15, 32).double(), embeds[:1]])
    raw_N = cosine_similarity(rows[:, None], embeds[None], dim=-1).mean(-1)
    got = bound.reduce(image(1, embeds_ND=rows, question="red circle"), 4)
    wanted = (raw_N - raw_N.min() + 1e-6) / (raw_N.max() - raw_N.min())
    torch.testing.assert_close(got.scores_N, wanted.float(), rtol=1e-4, atol=1e-5)
    blank = bound.reduce(image(1, embeds_ND=rows, question=""), 4)
    assert blank.scores_N is not None
    assert blank.scores_N.tolist() == [1.0] * 16


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_question_decides_on_every_family(family: str) -> None:
    model = miniatures.backbone(family)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    methods: list[Method] = [CDPruner(relevance="words")]
    if family != "qwen2_5_vl":
        methods.append(CDPruner().untrained())

    def scores(method: Method, question: str) -> Tensor:
        (features,) = model.encode(model.prompt([picture], "Why ?").pixels, method.needs(model.provides))
        visual = decision.visual_tokens(features, question, decision.image_generator(0, "test", 0))
        found = method.reduce(visual, 5)
        assert len(found.indices_K.unique()) == 5
        assert found.scores_N is not None
        return found.scores_N

    for method in methods:
        bound = method.bind(model)
        assert torch.equal(scores(bound, "Why ?"), scores(bound, "Why ?"))
        assert not torch.equal(scores(bound, "Why ?"), scores(bound, model.processor.tokenizer.eos_token))
