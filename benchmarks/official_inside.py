"""The selection rules inside the LLM as their papers' codes carry them out, for timing beside dpbench's.

Written from descriptions of the official codes, which are not copied here. Each function makes all of a method's cuts
and returns what each keeps. Queries and keys that the layer before a cut computes anyway are given for free (the views
cache them, and they are rotated before the clock runs); the attention map, which that layer would not form otherwise,
is charged. SparseVLM's noise on densities is left out, so that the choices can be compared.

Shape letters: L positions still there, N visual ones among them, H heads, D the LLM's width, d a head's width, M
recycled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dpbench.engine.decoder_view import DecoderView
from dpbench.method import Reduction

RECYCLED = 0.3
"""SparseVLM's share of the cut tokens that is merged."""
PIVOTS = 4
"""DART's pivots of each kind."""


def attention_map(view: DecoderView) -> Tensor:
    """Return the whole causal attention of the layer before the cut, (H, L, L), as eager attention forms it."""
    length, width = len(view.hidden_LD), view.queries_HLd.shape[-1]
    scores_HLL = view.queries_HLd @ view.keys_HLd.mT / width**0.5
    later_LL = torch.ones(length, length, dtype=torch.bool, device=scores_HLL.device).triu(1)
    return scores_HLL.masked_fill_(later_LL, -torch.inf).softmax(-1, dtype=torch.float32)


def best(scores_N: Tensor, keep: int) -> Reduction:
    """Return the tokens with the highest scores in their order."""
    return Reduction(scores_N.topk(keep).indices.sort().values)


def fastv(views: list[DecoderView]) -> list[Reduction]:
    """Return FastV's tokens: the last row of the whole map, its mean over heads."""
    return [best(attention_map(view)[:, -1].mean(0)[view.visual_index_N], view.cut.keep) for view in views]


def pyramiddrop(views: list[DecoderView]) -> list[Reduction]:
    """Return PyramidDrop's tokens: the coming layer's norm and its three projections of all positions, one row."""
    return [best(_light_attention(view)[view.visual_index_N], view.cut.keep) for view in views]


def _light_attention(view: DecoderView) -> Tensor:
    """Return the last position's attention by the layer about to run, mean over heads, (L,)."""
    layer = view.decoder.layers[view.cut.probe]
    attention, hidden_1LD = layer.self_attn, layer.input_layernorm(view.hidden_LD[None])
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    queries, keys, _ = (
        project(hidden_1LD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for project in projections
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, view.angles[0][None], view.angles[1][None])
    scores_HL = (queries[0, :, -1:] @ keys[0].mT)[:, 0] * attention.scaling
    row_L: Tensor = scores_HL.softmax(-1, dtype=torch.float32).mean(0)
    return row_L


def dart(views: list[DecoderView]) -> list[Reduction]:
    """Return DART's tokens: pivots one after another, each against a copy of the candidates that are left."""
    return [_dart_cut(view) for view in views]


def _dart_cut(view: DecoderView) -> Reduction:
    visual, text = view.visual_index_N, view.text_index
    norms_L = view.keys_HLd.transpose(0, 1).flatten(1).abs().sum(-1)
    normed_LD = view.final_norm(view.hidden_LD)
    behind = text[text > visual[-1]]
    image = visual[norms_L[visual].topk(PIVOTS).indices].tolist()
    pivots = set(image + behind[norms_L[behind].topk(PIVOTS).indices].tolist())
    candidates, kept = [token for token in visual.tolist() if token not in image], list(image)
    for pivot in pivots:
        cosine = cosine_similarity(normed_LD[pivot][None], normed_LD[candidates], dim=-1)
        least = cosine.topk((view.cut.keep - PIVOTS) // len(pivots), largest=False).indices.tolist()
        picked = {candidates[place] for place in least}
        kept += picked
        candidates = [token for token in candidates if token not in picked]
    return Reduction(torch.tensor(sorted(kept), device=visual.device) - visual[0])


def sparsevlm(views: list[DecoderView]) -> list[Reduction]:
    """Return SparseVLM's rows: raters once, then at every cut the whole map and clusters of what is recycled."""
    prompt = views[0].prompt
    behind = prompt.text_index[prompt.text_index > prompt.visual_index_N[-1]]
    match_T = (prompt.embeds_LD[prompt.visual_index_N] @ prompt.embeds_LD[behind].T).softmax(-1).mean(0)
    chosen_T = match_T > match_T.mean()
    return [_sparsevlm_cut(view, view.text_index[-len(behind) :][chosen_T]) for view in views]


def _sparsevlm_cut(view: DecoderView, rows: Tensor) -> Reduction:
    scores_N = attention_map(view)[:, rows].mean((0, 1))[view.visual_index_N]
    kept, merged = view.cut.keep - view.cut.merged, view.cut.merged
    kept_K = scores_N.topk(kept).indices.sort().values
    states_ND = view.hidden_LD[view.visual_index_N]
    left_N = torch.ones_like(scores_N, dtype=torch.bool).index_fill(0, kept_K, False).nonzero()[:, 0]
    recycled = scores_N[left_N].topk(int(RECYCLED * len(left_N)) + 1).indices.sort().values
    rows_GD = _clustered(states_ND[left_N[recycled]], merged)
    indices = torch.cat([kept_K, kept_K.new_full((merged,), -1)])
    return Reduction(indices, embeds_KD=torch.cat([states_ND[kept_K], rows_GD]))


def _clustered(states_MD: Tensor, num: int) -> Tensor:
    """Return the means of the clusters around density peaks."""
    distance_MM = torch.cdist(states_MD.float(), states_MD.float()) / states_MD.shape[1] ** 0.5
    density_M = (-distance_MM.topk(num, largest=False).values.square().mean(-1)).exp()
    denser_MM = density_M[None] > density_M[:, None]
    parent_M = torch.where(denser_MM, distance_MM, distance_MM.max()).amin(-1)
    centres = (parent_M * density_M).topk(num).indices
    cluster_M = distance_MM[centres].argmin(0)
    cluster_M[centres] = torch.arange(num, device=centres.device)
    member_MG = torch.nn.functional.one_hot(cluster_M, num).to(states_MD.dtype)
    return (member_MG.T @ states_MD) / (member_MG.sum(0)[:, None] + 1e-6)


RULES_INSIDE = {"fastv": fastv, "pyramiddrop": pyramiddrop, "dart": dart, "sparsevlm": sparsevlm}
"""Method -> its official rule for all its cuts."""
