"""VisionZip (Yang et al., CVPR 2025, arXiv:2412.04467), section 3: dominant tokens stay, the others are merged.

The tokens that the vision tower attends to most stay; a few of the rest, evenly spaced, take in those whose keys are
nearest. Training-free, before the LLM, blind to the question. With a CLS token: before the projector, and the CLS row
is one of the K. Without: after the projector.

Read against: dvlab-research/VisionZip (visionzip/clip_encoder.py, llava_arch.py), and the authors' Qwen2.5-VL file as
kept in HVision-NKU/GlimpsePrune @ 091a3d5, qwen_visionzip; commit of the first not recorded
Same as upstream:  dominant = CLS and the top patches of the CLS row's head sum, in raster order; every step-th of the
                   rest is a target, chosen by place alone; the others join the target with the nearest head-mean key
                   (cosine, before the scale); a merged row is the target plus the mean of those that joined, so it is
                   about twice as long as others; merged rows come last. Without CLS: attention received in the last
                   block, keys after RoPE, and a merged row stands where its target stood.
Differs:           ties go to the earlier token; float32 throughout; of the caller's K, 10 in 64 are merged (as in the
                   published splits 54+10, 108+20, 162+30, 27+5) unless `contextual` says otherwise.
LLaVA-NeXT:        views share the budget equally, the remainder is unused. Base view as above, then the tiles' patches
                   along the canvas, the tiles' CLS rows, the tiles' merged rows. Upstream neither unpads nor leaves
                   padding out; here padding takes no part, unless `parity`: then it is ranked, read and counted, in
                   its place on the canvas.

Shape letters: V views, N tokens of a view, C the width of the rows, K dominant tokens and M merged rows of a view, d
the keys' width, T tiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens
from dpbench_baselines.tile_canvas import canvas_order, padded_places

SPLIT = (10, 64)
"""Of how many rows how many are merged, in all published settings."""
WITH_CLS = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})
WITHOUT_CLS = frozenset({"received_attention_N", "keys_Nd"})


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Keep the most attended tokens and merge the others into a few, by their keys (VisionZip).

    contextual: merged rows of each view. Default None: 10 of every 64 rows.
    parity: LLaVA-NeXT's padding is ranked, merged and read too, as in the published numbers. Default false.
    """

    anyres = "own"
    contextual: int | None = None
    parity: bool = False

    def __post_init__(self) -> None:
        if self.contextual is not None and self.contextual < 0:
            raise ConfigError(f"--param: visionzip.contextual is a number of rows, got {self.contextual}")

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the CLS token, its attention and the keys; without CLS for the attention received and the keys."""
        for names in (WITH_CLS, WITHOUT_CLS):
            if names <= provides:
                if names is WITH_CLS and self.positions == "original":
                    raise UnsupportedError("visionzip's CLS and merged rows have no position; use positions=compact")
                return names
        raise UnsupportedError("visionzip merges by the vision tower's keys, and this backbone does not give them")

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Merge in the tower's space where there is a CLS token, else in the LLM's."""
        if visual.cls_attention:
            return self.reduce_views(visual, keep)
        assert visual.keys_Nd is not None, "asked for in needs"
        assert visual.received_attention_N is not None, "asked for in needs"
        scores_N, contextual = visual.received_attention_N.float(), max(1, self.num_contextual(keep, keep))
        views = Views(visual.embeds_ND[None], visual.keys_Nd[None], scores_N[None], visual.read_N[None])
        dominant_1K, targets_1M = choose(views, keep - contextual, contextual)
        indices_K = torch.cat([dominant_1K[0], targets_1M[0]])
        rows_KD = torch.cat([visual.embeds_ND[dominant_1K[0]], merge(views, dominant_1K, targets_1M)[0]])
        order_K = indices_K.argsort()
        return Reduction(indices_K[order_K], embeds_KD=rows_KD[order_K], scores_N=scores_N)

    def reduce_views(self, visual: VisualTokens, keep: int) -> Reduction:
        """Choose and merge in each view alike; the views are of one size and have a CLS row each.

        Args:
            visual: all tokens of the image, or those of one view.
            keep: budget in rows over the views given, CLS and merged rows included.
        """
        assert visual.cls_hidden_VC is not None, "asked for in needs"
        assert visual.keys_Nd is not None, "asked for in needs"
        size, used = len(visual) // len(visual.cls_hidden_VC), min(len(visual.cls_hidden_VC), keep)
        contextual = self.num_contextual(keep // used, keep // used - 1)
        scores_N = visual.cls_attention[max(visual.cls_attention)].float().sum(0)
        fields = (visual.hidden_NC, visual.keys_Nd, scores_N, visual.read_N | self.parity)
        views = Views(*(values.unflatten(0, (-1, size))[:used] for values in fields))
        dominant_VK, targets_VM = choose(views, keep // used - contextual - 1, contextual)
        merged_VMC = merge(views, dominant_VK, targets_VM)
        no_token_VM = targets_VM.masked_fill(views.real_VN.gather(1, targets_VM), -1)
        offset_V1 = size * torch.arange(used, device=scores_N.device)[:, None]
        dominant_VK = dominant_VK + offset_V1
        no_token_VM = torch.where(no_token_VM < 0, -1, no_token_VM + offset_V1)
        place_N = padded_places(visual, len(visual.cls_hidden_VC) - 1) if self.parity else visual.slot_N
        base_K, tiles_K = dominant_VK[0], canvas_order(dominant_VK[1:], place_N)
        cls_V, cls_VC = no_token_VM.new_full((used,), -1), visual.cls_hidden_VC[:used]
        # with `parity` a row of padding counts as one that is no token, so that the LLM reads it
        tokens_N = torch.arange(len(visual), device=cls_V.device).masked_fill(~visual.read_N & self.parity, -1)
        kept_tokens = (tokens_N[base_K], tokens_N[tiles_K])
        indices = (cls_V[:1], kept_tokens[0], no_token_VM[0], kept_tokens[1], cls_V[1:], no_token_VM[1:].flatten())
        kept = (visual.hidden_NC[base_K], visual.hidden_NC[tiles_K])
        rows = (cls_VC[:1], kept[0], merged_VMC[0], kept[1], cls_VC[1:], merged_VMC[1:].flatten(0, 1))
        return Reduction(torch.cat(indices), hidden_KC=torch.cat(rows), scores_N=scores_N)

    def num_contextual(self, rows: int, most: int) -> int:
        """Return how many of a view's rows are merged.

        Args:
            rows: of the view.
            most: as many as may be.

        Raises:
            ConfigError: `contextual` asks for more.
        """
        if self.contextual is None:
            return min(round(rows * SPLIT[0] / SPLIT[1]), most)
        if self.contextual > most:
            raise ConfigError(
                f"--param: visionzip.contextual={self.contextual} merged rows do not fit in the {rows} rows of a view "
                f"at this budget; at most {most} do"
            )
        return self.contextual


@dataclass(frozen=True, slots=True)
class Views:
    """What is chosen from and merged: views of one size, without CLS rows.

    Attributes:
        rows_VNC: the tokens.
        keys_VNd: what tells which are alike.
        scores_VN: what ranks them, float32.
        real_VN: bool, False for tokens that take no part.
    """

    rows_VNC: Tensor
    keys_VNd: Tensor
    scores_VN: Tensor
    real_VN: Tensor


def choose(views: Views, dominant: int, contextual: int) -> tuple[Tensor, Tensor]:
    """Return each view's dominant tokens and the targets of the merge, both ascending, int64 (V, K) and (V, M).

    What takes no part is chosen only where nothing else is left.

    Args:
        views: what is chosen from.
        dominant: K.
        contextual: M; K + M <= N.
    """
    scores_VN = views.scores_VN.masked_fill(~views.real_VN, -torch.inf)
    dominant_VK = torch.argsort(scores_VN, dim=1, descending=True, stable=True)[:, :dominant].sort().values
    taken_VN = flagged(dominant_VK, views.real_VN)
    return dominant_VK, even_targets(taken_VN, views.real_VN, contextual)


def even_targets(taken_VN: Tensor, real_VN: Tensor, contextual: int) -> Tensor:
    """Return evenly spaced tokens of those not taken: every step-th from the first, int64 (V, M).

    Args:
        taken_VN: bool, the dominant tokens.
        real_VN: bool; tokens that take no part stand behind those that do.
        contextual: M.
    """
    left_VN = torch.argsort(taken_VN * 2 + (~real_VN & ~taken_VN).to(torch.uint8), dim=1, stable=True)
    count_V1 = (~taken_VN & real_VN).sum(1, keepdim=True)
    step_V1 = (count_V1 // max(contextual, 1)).clamp(min=1)
    return left_VN.gather(1, step_V1 * torch.arange(contextual, device=taken_VN.device))


def nearest_targets(keys_VNd: Tensor, targets_VM: Tensor) -> Tensor:
    """Return which target each token's key has the largest cosine with, the first of equals, int64 (V, N); M > 0."""
    units_VNd = torch.nn.functional.normalize(keys_VNd.float(), dim=-1)
    return (units_VNd @ rows_at(units_VNd, targets_VM).mT).argmax(-1)


def merge(views: Views, dominant_VK: Tensor, targets_VM: Tensor) -> Tensor:
    """Return each target plus the mean of the tokens that join it, (V, M, C) in the rows' type.

    Args:
        views: what is merged.
        dominant_VK: int64, tokens that join nothing.
        targets_VM: int64.
    """
    num_targets = targets_VM.shape[1]
    if num_targets == 0:
        return views.rows_VNC[:, :0]
    joins_VN = views.real_VN & ~flagged(torch.cat([dominant_VK, targets_VM], dim=1), views.real_VN)
    nearest_VN = nearest_targets(views.keys_VNd, targets_VM).masked_fill(~joins_VN, num_targets)
    target_M1 = torch.arange(num_targets, device=targets_VM.device)[:, None]
    member_VMN = (nearest_VN[:, None] == target_M1).float()
    sums_VMC = member_VMN @ views.rows_VNC.float()
    means_VMC = sums_VMC / member_VMN.sum(-1, keepdim=True).clamp(min=1)
    return (rows_at(views.rows_VNC, targets_VM) + means_VMC).to(views.rows_VNC.dtype)


def flagged(indices_VK: Tensor, like_VN: Tensor) -> Tensor:
    """Return which tokens are among the indices, bool (V, N)."""
    return torch.zeros_like(like_VN).scatter_(1, indices_VK, True)


def rows_at(rows_VNC: Tensor, indices_VK: Tensor) -> Tensor:
    """Return each view's rows at its indices, (V, K, C)."""
    return rows_VNC.gather(1, indices_VK[:, :, None].expand(-1, -1, rows_VNC.shape[-1]))
