"""SparseVLM: vectors from the official code, its lists and what they cost, and whole answers against a reference."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines import sparsevlm
from dpbench_baselines.sparsevlm import SparseVLM
from golden_vectors import find_vectors, load_tensors
from PIL import Image
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dpbench import registry
from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.backbones.llava import Llava
from dpbench.budget import BudgetRequest
from dpbench.conformance.vectors import run as vectors
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Budget, Cut, DecoderInput

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("sparsevlm")


def test_the_vectors_are_there() -> None:
    assert [vectors.check(SparseVLM(), path).kind for path in GOLDENS] == ["raters"] * 5


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_vector_passes(path: Path) -> None:
    done = vectors.check(registry.load("sparsevlm"), path)
    assert done.passed, done.detail


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_step_of_every_vector(path: Path) -> None:
    want, method = load_tensors(path), SparseVLM()
    chosen_T = sparsevlm.raters(want["emb_visual"], want["emb_text"])
    assert torch.equal(chosen_T.nonzero()[:, 0], want["rater_idx"])
    relation_N = want["attn_text_to_visual"][:, chosen_T].mean((0, 1))
    torch.testing.assert_close(relation_N, want["relation"], rtol=1e-5, atol=1e-8)
    kept, num = int(want["keep_mask"].sum()), len(relation_N)
    assert method.num_merged(num - kept) == int(want["n_clusters"])
    candidates_M = sparsevlm.recycled(relation_N, kept, method.num_recycled(num - kept))
    assert torch.equal(candidates_M, want["merge_candidates"])
    states_MD = want["hidden_visual"][candidates_M].float()
    clusters = sparsevlm.density_peaks(states_MD, int(want["n_clusters"]))
    assert torch.equal(candidates_M[clusters.centre_G], want["cluster_centres"])
    pairs = torch.stack([candidates_M, clusters.cluster_M], 1)
    assert torch.equal(pairs, want["cluster_of_candidate"])
    merged_GD = sparsevlm.cluster_means(states_MD, clusters)
    torch.testing.assert_close(merged_GD, want["merged_tokens"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["emb_visual", "emb_text", "attn_text_to_visual", "hidden_visual", "budget", "layer", "out_visual"]
)
def test_a_vector_with_other_content_fails(name: str, tmp_path: Path) -> None:
    with np.load(GOLDENS[0]) as arrays:
        changed = {key: arrays[key] for key in arrays.files}
    swapped = {"budget": np.asarray(128), "layer": np.asarray(6)}
    turned = np.flip(changed[name], -1 if name == "emb_visual" else 0) if changed[name].ndim else None
    np.savez(tmp_path / "sparsevlm_x.npz", **changed | {name: swapped[name] if turned is None else turned})
    if name == "attn_text_to_visual":
        np.savez(tmp_path / "sparsevlm_x.npz", **changed | {name: np.flip(changed[name], 1)})
    assert not vectors.check(SparseVLM(), tmp_path / "sparsevlm_x.npz").passed


OFFICIAL = [
    (192, (309, 204, 113), (9, 4, 3), 206.5),
    (128, (312, 117, 39), (9, 7, 3), 145.4),
    (96, (249, 55, 27), (11, 7, 1), 114.1),
    (64, (82, 32, 18), (16, 2, 1), 82.2),
]


@pytest.mark.parametrize(("count", "left", "merged", "mean"), OFFICIAL)
def test_the_official_lists_and_what_they_really_cost(
    count: int, left: tuple[int, ...], merged: tuple[int, ...], mean: float
) -> None:
    method = registry.load("sparsevlm", {"preset": "official"})
    cuts = pruned_prompt.validate_cuts(method, 576, 32, Budget(count))
    expected = zip((3, 7, 16), left, (2, 6, 15), merged, strict=True)
    assert cuts == tuple(Cut(*each) for each in expected)
    assert sum(pruned_prompt.per_layer(576, 32, cuts)) / 32 == pytest.approx(mean, abs=0.06)
    assert method.spends == "own"


@pytest.mark.parametrize(("count", "left"), [(192, (300, 200, 118)), (64, (66, 34, 20))])
def test_the_second_version_keeps_its_own_lists_and_merges_nothing(count: int, left: tuple[int, ...]) -> None:
    cuts = SparseVLM(version="v2", preset="official").cuts(576, 40, Budget(count))
    assert [(cut.keep, cut.merged) for cut in cuts] == [(each, 0) for each in left]
    assert [cut.layer for cut in cuts] == [3, 7, 16]


def test_versions_have_their_own_positions() -> None:
    assert SparseVLM().positions == "compact"
    assert SparseVLM(version="v2").positions == "original"
    with pytest.raises(ConfigError, match="no parameter 'positions'"):
        registry.load("sparsevlm", {"positions": "original"})


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_budget_is_met_within_one_token(version: Any) -> None:
    method = SparseVLM(version=version)
    assert method.spends == "per-image"
    for num, depth in ((16, 4), (144, 12), (576, 32), (576, 40), (2880, 32), (391, 28)):
        first = method.cuts(num, depth, Budget(num))[0].layer
        for count in sorted({-(-first * num // depth), num // 2, num // 3, num - 1, num}):
            if count * depth >= first * num:
                cuts = pruned_prompt.validate_cuts(method, num, depth, Budget(count))
                assert all(cut.merged <= cut.keep for cut in cuts)
        for count in (1, 2, num // 9 + 1, num // 2, num):
            assert pruned_prompt.validate_cuts(method, num, depth, Budget(count, "final"))[-1].keep == count


def test_most_of_a_stage_is_tokens_as_they_are() -> None:
    """As many as with the merged rows they leave make the total; the lists are found again from their totals."""
    method = SparseVLM()
    for count, left, merged, _ in OFFICIAL:
        for before, after, each in zip((576, *left), left, merged, strict=False):
            assert method._merged_of(before, after) in (each, each - 1), count
    for before in (1, 7, 30, 144, 576):
        for total in range(before + 1):
            rows = method._merged_of(before, total)
            assert 0 <= rows <= total
            if 0 < rows < total:
                assert method.num_merged(before - (total - rows)) == rows


def test_the_layers_scale_with_the_depth_and_can_be_given() -> None:
    depths = {4: [1, 2, 3], 12: [1, 3, 6], 28: [3, 6, 14], 32: [3, 7, 16], 40: [4, 9, 20]}
    assert {d: [cut.layer for cut in SparseVLM().cuts(576, d, Budget(300))] for d in depths} == depths
    cuts = SparseVLM(layers=(2,), schedule=(180,)).cuts(576, 32, Budget(64))
    assert cuts == (Cut(3, 180 + 12, 2, 12),)  # 396 cut, 119 recycled
    assert [cut.layer for cut in SparseVLM(layers=(1, 4)).cuts(144, 12, Budget(60))] == [2, 5]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"preset": "official"}, "lists for 192, 128, 96 and 64 tokens, not 50"),
        ({"layers": (2, 31)}, "end before the last of 32 layers, got 31"),
        ({"layers": (1, 2, 3, 4)}, "beyond three need a schedule"),
        ({}, "mean of 50 of 576 .* between 54 and 576"),
    ],
)
def test_a_budget_it_cannot_meet_is_one_sentence(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseVLM(**params).cuts(576, 32, Budget(50))
    with pytest.raises(ConfigError, match="official is for layers 2, 6 and 15, not 3"):
        SparseVLM(preset="official", layers=(2, 3)).cuts(576, 32, Budget(64))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": []}, "must rise"),
        ({"layers": [3, 3]}, "must rise"),
        ({"schedule": [10, 20, 5]}, "must fall"),
        ({"schedule": [10, 5]}, "one for each of 3 layers, got 2"),
        ({"recycle_ratio": 1.1}, "recycle_ratio of 0 to 1"),
        ({"per_row": 0}, "at least 1"),
        ({"version": "v3"}, "sparsevlm.version"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("sparsevlm", params)


def noisy(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def naive_peaks(states_MD: Tensor, num: int) -> tuple[list[int], list[int]]:
    """Return centres and clusters by loops over differences."""
    points = states_MD.double()
    far = [[float((a - b).square().sum().sqrt() / points.shape[1] ** 0.5) for b in points] for a in points]
    density = [float(np.exp(-np.mean(np.square(sorted(row)[:num])))) for row in far]
    score = []
    for i, row in enumerate(far):
        denser = [row[j] for j in range(len(far)) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else max(map(max, far))))
    centres = sorted(range(len(far)), key=lambda i: -score[i])[:num]
    clusters = [min(range(num), key=lambda g: row[centres[g]]) for row in far]
    for g, centre in enumerate(centres):
        clusters[centre] = g
    return centres, clusters


@pytest.mark.parametrize(("num_points", "num"), [(1, 1), (5, 1), (21, 2), (21, 3), (40, 40)])
def test_density_peaks_equal_loops_over_differences(num_points: int, num: int) -> None:
    states_MD = noisy(num_points, 12)
    clusters = sparsevlm.density_peaks(states_MD, num)
    assert (clusters.centre_G.tolist(), clusters.cluster_M.tolist()) == naive_peaks(states_MD, num)
    sizes = torch.bincount(clusters.cluster_M)
    means = torch.stack([states_MD[clusters.cluster_M == g].mean(0) for g in range(num)])
    torch.testing.assert_close(
        sparsevlm.cluster_means(states_MD, clusters), means * (sizes / (sizes + 1e-6))[:, None], rtol=1e-5, atol=1e-6
    )


def test_distances_are_symmetric_and_true_far_from_the_origin() -> None:
    states_MD = noisy(61, 300) + 1000
    got = sparsevlm.distances(states_MD)
    assert torch.equal(got, got.T)
    assert torch.equal(got.diagonal(), torch.zeros(61, dtype=torch.float64))
    wanted = torch.cdist(states_MD.double(), states_MD.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    near = torch.stack([states_MD[0], states_MD[0] + 1e-3, states_MD[1]])
    exact = (near[0].double() - near[1].double()).norm()
    assert float(sparsevlm.distances(near)[0, 1]) == pytest.approx(float(exact), rel=1e-6)


def test_noise_is_off_unless_a_seed_is_given_and_then_decides_ties_only() -> None:
    points = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    plain = SparseVLM().merge(points, 3, 0)
    assert torch.equal(SparseVLM().merge(points, 3, 0), plain)
    torch.testing.assert_close(SparseVLM(noise_seed=5).merge(points, 3, 0), plain)
    same = torch.eye(12)
    draws = {tuple(SparseVLM(noise_seed=seed).merge(same, 2, 0).flatten().tolist()) for seed in range(5)}
    assert len(draws) > 1
    assert torch.equal(SparseVLM(noise_seed=1).merge(same, 2, 0), SparseVLM(noise_seed=1).merge(same, 2, 0))


def test_the_response_is_that_of_vectors_of_ones() -> None:
    """w(m, n) = 2 / sqrt(d) sum_j cos((m - n) theta_j), as one turns such vectors by hand."""
    width, positions = 128, torch.arange(700)
    theta = 1e4 ** (-torch.arange(0, width, 2) / width)
    turns = (positions[:, None] * theta).repeat(1, 2).double()
    rows, columns = torch.tensor([699, 650]), torch.tensor([0, 35, 640, 650])
    got = sparsevlm.rope_response((turns.cos(), turns.sin()), rows, columns)
    distance = (rows[:, None] - columns).double()
    wanted = (distance[..., None] * theta).cos().sum(-1) * 2 / width**0.5
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3)
    assert float(got[1, 3]) == pytest.approx(11.3, abs=0.05)
    assert float(got[1, 0]) == pytest.approx(2.2, abs=0.05)
    far = sparsevlm.rope_response((turns.cos(), turns.sin()), positions, positions)
    assert float(far.min()) > 0.05 * width**0.5


def test_heads_that_see_most_are_the_ones_that_count() -> None:
    attention_HRN = torch.tensor([1.0, 5.0, 3.0])[:, None, None].expand(3, 2, 4)
    assert sparsevlm.seeing_heads(attention_HRN, 2)[:, 0, 0].tolist() == [5.0, 3.0]
    assert len(sparsevlm.seeing_heads(attention_HRN, 14)) == 3


def test_raters_are_text_above_the_mean_and_all_of_it_if_there_is_no_other() -> None:
    visual_ND = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    text_TD = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert sparsevlm.raters(visual_ND, text_TD).tolist() == [False, True, False]
    assert sparsevlm.raters(visual_ND, text_TD[:1]).tolist() == [True]


def test_an_image_that_no_text_follows_is_refused() -> None:
    @dataclass(frozen=True)
    class View:
        prompt: DecoderInput

    places = torch.arange(5)
    view: Any = View(DecoderInput(torch.zeros(5, 2), places[2:], places[:2]))
    with pytest.raises(UnsupportedError, match="no text follows the image"):
        SparseVLM().rank(view)


def prune(model: Backbone, method: SparseVLM, image: Image.Image, text: str, keep: int) -> PrunedPrompt:
    prompt = model.prompt([image], text)
    features = model.encode(prompt.pixels)
    generators = [decision.image_generator(0, "test", 0)]
    return pruned_prompt.splice(model, method, prompt, features, generators, decision.Rule(BudgetRequest(keep=keep)))


def generated(model: Backbone, method: SparseVLM, prompts: list[PrunedPrompt], **options: Any) -> tuple[Any, Any]:
    batch = forward.collate(prompts)
    with torch.no_grad(), forward.drop_inside_llm(model, method, prompts) as state:
        out = model.model.generate(
            inputs_embeds=batch.embeds_BLD,
            attention_mask=batch.mask_BL,
            position_ids=model.position_ids(batch.positions_PBL, batch.mask_BL),
            return_dict_in_generate=True,
            output_logits=True,
            **{"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0} | options,
        )
    return out, state


@dataclass
class Reference:
    """Prompt and answer run through the layers whole: what is cut stays and is masked, merged rows are put in."""

    model: Backbone
    method: SparseVLM
    prompt: PrunedPrompt

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of the last prompt position and of every answer position but the last."""
        decoder, length = self.model.decoder, len(self.prompt.embeds_LD)
        hidden = torch.cat([self.prompt.embeds_LD, decoder.embed_tokens(ids[:-1])])
        visual = self.prompt.visual_L.nonzero()[:, 0].tolist()
        behind = list(range(visual[-1] + 1, length))
        score = (hidden[visual].float() @ hidden[behind].float().T).softmax(1).mean(0)
        is_rater = (score > score.mean()).tolist()
        alive, positions = torch.ones(len(hidden), dtype=torch.bool), torch.arange(len(hidden))
        cuts = {cut.layer: cut for cut in self.prompt.cuts}
        for number, layer in enumerate(decoder.layers):
            if number + 1 in cuts:
                cut = cuts[number + 1]
                attention = self.attention(layer, hidden, alive, positions)
                rows = [row for row, rates in zip(behind, is_rater, strict=True) if rates]
                rating = self.rating(attention, rows, visual, positions)
            hidden = self.run(layer, hidden, alive, positions)
            if number + 1 in cuts:
                order = sorted(range(len(visual)), key=lambda n: (-float(rating[n]), n))
                num_kept = cut.keep - cut.merged
                kept = [visual[n] for n in sorted(order[:num_kept])]
                alive[visual] = False
                alive[kept] = True
                if cut.merged:
                    num = int(0.3 * (len(visual) - num_kept)) + 1
                    again = hidden[[visual[n] for n in sorted(order[num_kept : num_kept + num])]]
                    _, clusters = naive_peaks(again, cut.merged)
                    of = torch.tensor(clusters)
                    made = [again[of == g].sum(0) / ((of == g).sum() + 1e-6) for g in range(cut.merged)]
                    at = (kept[-1] if kept else visual[0] - 1) + 1
                    hidden = torch.cat([hidden[:at], torch.stack(made), hidden[at:]])
                    alive = torch.cat([alive[:at], torch.ones(cut.merged, dtype=torch.bool), alive[at:]])
                    behind = [row + cut.merged for row in behind]
                    kept += range(at, at + cut.merged)
                visual = kept
                if self.method.positions == "compact":
                    positions = alive.cumsum(0) - 1
        return self.model.model.lm_head(decoder.norm(hidden))[-len(ids) :]  # type: ignore[no-any-return]

    def rating(self, attention_HLL: Tensor, rows: list[int], visual: list[int], positions: Tensor) -> Tensor:
        seen = attention_HLL[:, rows][:, :, visual]
        if self.method.version == "v1":
            return seen.mean((0, 1))
        width = self.model.decoder.config.head_dim
        theta = 1e4 ** (-torch.arange(0, width, 2) / width)
        distance = positions[rows][:, None] - positions[visual]
        response = (distance[..., None] * theta).cos().sum(-1) * 2 / width**0.5
        seen = seen / response.clamp(min=0.05 * width**0.5)
        best = seen.sum((1, 2)).argsort(descending=True)[: self.method.num_heads]
        return seen[best].mean((0, 1))

    def run(self, layer: Any, hidden: Tensor, alive: Tensor, positions: Tensor) -> Tensor:
        mask = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril() & alive
        mask |= torch.eye(len(hidden), dtype=torch.bool)
        angles = self.model.decoder.rotary_emb(hidden[None], positions[None])
        out = layer(hidden[None], attention_mask=mask[None, None], position_embeddings=angles, position_ids=None)
        return out[0]  # type: ignore[no-any-return]

    def attention(self, layer: Any, hidden: Tensor, alive: Tensor, positions: Tensor) -> Tensor:
        normed, width = layer.input_layernorm(hidden), self.model.decoder.config.head_dim
        queries, keys = (
            getattr(layer.self_attn, name)(normed).view(1, len(hidden), -1, width).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        queries, keys = apply_rotary_pos_emb(
            queries, keys, *self.model.decoder.rotary_emb(hidden[None], positions[None])
        )
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        seen = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril() & alive
        scores = queries[0] @ keys[0].transpose(1, 2) / width**0.5
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)


LONG = "And is there another question about the colours of this very image ?"


@pytest.mark.parametrize("keep", [36, 60, 100])
@pytest.mark.parametrize(
    "params",
    [{}, {"version": "v2"}, {"version": "v2", "num_heads": 2}, {"layers": (0, 2), "schedule": (30, 4)}],
    ids=str,
)
def test_a_whole_answer_equals_the_masked_and_merged_reference(
    tiny: Llava, picture: Callable[[int], Image.Image], keep: int, params: dict[str, Any]
) -> None:
    method = SparseVLM(**params)
    prompt = prune(tiny, method, picture(keep), LONG, keep)
    out, _ = generated(tiny, method, [prompt])
    with torch.no_grad():
        wanted = Reference(tiny, method, prompt).logits(out.sequences[0])
    torch.testing.assert_close(torch.cat(out.logits).double(), wanted, rtol=1e-5, atol=1e-5)
    fresh, _ = generated(tiny, method, [prompt], use_cache=False)
    torch.testing.assert_close(torch.cat(fresh.logits), torch.cat(out.logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_ragged_batch_with_merged_rows_equals_batches_of_one(family: str, attention: str, version: Any) -> None:
    """In a batch there is a mask, and a merged row has the column of the row before it: neither sees what follows."""
    model = miniatures.backbone(family, torch.float64 if attention == "sdpa" else torch.float32, attention)
    method = SparseVLM(version=version, layers=(0, 1), schedule=(6, 2), per_row=2)
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (60, 100, 3), dtype=np.uint8)) for n in (1, 2)]
    prompts = [prune(model, method, image, text, 8) for image, text in zip(images, ("Why ?", LONG), strict=True)]
    together, state = generated(model, method, prompts)
    assert all((each[-1] < 0).any() == (version == "v1") for each in state.kept_rows())
    for number, prompt in enumerate(prompts):
        alone, _ = generated(model, method, [prompt])
        close = 1e-6 if attention == "sdpa" else 1e-4
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[number], b[0], rtol=close, atol=close)
