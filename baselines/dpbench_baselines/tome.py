"""Token merging before the LLM, with the bipartite matching of ToMe (Bolya et al., ICLR 2023, arXiv:2210.09461).

Every other token looks for its most similar one among those between; the best pairs are merged, until the budget is
met. Training-free, blind to the question. No published baseline: ToMe itself merges inside the vision tower, layer by
layer, which changes the features; here the finished tokens are merged, so that it can be compared with selection.

Read against: the paper, section 3 (bipartite soft matching, size-weighted averages)
Same as the paper: alternating split, a token's best match by cosine, the r best pairs at once, averages by size.
Differs:           after the tower instead of in every layer, half of the tokens a step at most (576, 288, 144, 72, 64);
                   the order is restored after every step, by each group's first token, whose place the row takes.
Where:             with the tower's keys, in the tower's space and by these keys, as the paper; else, or with
                   `metric=token`, after the projector and by the tokens themselves. Padding takes no part.

Shape letters: N tokens, n groups left, K groups at the end, d the metric's width, C the width of the rows.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import Method, Reduction, VisualTokens


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Merge the most similar tokens, pair by pair, into size-weighted averages (ToMe's matching, before the LLM).

    metric: what is compared: the tower's head-mean keys ("key", merged before the projector) or the projected tokens
        ("token", merged behind it). Default None: keys where the backbone has them.
    """

    metric: Literal["key", "token"] | None = None

    def __post_init__(self) -> None:
        if self.metric not in (None, "key", "token"):
            raise ConfigError(f"--param: tome knows metric=key and metric=token, got {self.metric!r}")

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Ask for the keys, unless the tokens are compared."""
        if self.metric == "key" and "keys_Nd" not in provides:
            raise UnsupportedError("tome with metric=key needs the vision tower's keys, and this backbone has none")
        return provides & {"keys_Nd"} if self.metric != "token" else frozenset()

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Merge down to the budget; a row stands where the first of its tokens stood."""
        read_N = visual.read_N.nonzero()[:, 0]
        keys_Nd = None if self.metric == "token" else visual.keys_Nd
        metric_Nd = visual.embeds_ND if keys_Nd is None else keys_Nd
        group_N, first_K = merge_alike(metric_Nd[read_N].float(), keep)
        rows_NC = visual.embeds_ND if keys_Nd is None else visual.hidden_NC
        means_KC = group_means(rows_NC[read_N], group_N, len(first_K))
        if keys_Nd is None:
            return Reduction(read_N[first_K], embeds_KD=means_KC)
        return Reduction(read_N[first_K], hidden_KC=means_KC)


def merge_alike(metric_Nd: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Merge until `keep` groups are left.

    Args:
        metric_Nd: float32, what is compared.
        keep: K; fewer tokens stay as they are.

    Returns:
        The group of every token, int64 (N,), and every group's first token, int64 (K,), rising.
    """
    group_N = torch.arange(len(metric_Nd), device=metric_Nd.device)
    first_n, size_n1 = group_N, metric_Nd.new_ones(len(metric_Nd), 1)
    while len(metric_Nd) > keep:
        joined_n = best_pairs(metric_Nd, min(len(metric_Nd) - keep, len(metric_Nd) // 2))
        num_left = max(keep, len(metric_Nd) - len(metric_Nd) // 2)
        number_n, oldest_n = renumber(joined_n, num_left)
        sums_nd = group_sums(torch.cat([metric_Nd * size_n1, size_n1], dim=1), number_n, num_left)
        size_n1 = sums_nd[:, -1:]
        metric_Nd = sums_nd[:, :-1] / size_n1
        group_N, first_n = number_n[group_N], first_n[oldest_n]
    return group_N, first_n


def best_pairs(metric_nd: Tensor, num_pairs: int) -> Tensor:
    """Return which token each one joins, itself if none, int64 (n,).

    Tokens in even places join tokens in odd ones: each its most similar, and of all only the most similar pairs.

    Args:
        metric_nd: in order.
        num_pairs: how many; at most n // 2.
    """
    units_nd = torch.nn.functional.normalize(metric_nd, dim=-1)
    similarity, match = (units_nd[::2] @ units_nd[1::2].mT).max(1)
    joining = torch.argsort(similarity, descending=True, stable=True)[:num_pairs]
    joined_n = torch.arange(len(metric_nd), device=metric_nd.device)
    return joined_n.scatter(0, 2 * joining, 2 * match[joining] + 1)


def renumber(joined_n: Tensor, num_left: int) -> tuple[Tensor, Tensor]:
    """Number the groups by their first tokens.

    Args:
        joined_n: int64, the token each one joins; joined ones join themselves.
        num_left: how many groups.

    Returns:
        The group of each token, int64 (n,), and each group's first token, int64 (num_left,), rising.
    """
    place_n = torch.arange(len(joined_n), device=joined_n.device)
    oldest_n = place_n.scatter_reduce(0, joined_n, place_n, "amin")
    oldest_n = torch.where(joined_n == place_n, oldest_n, len(joined_n))
    left_n = torch.argsort(oldest_n)[:num_left]
    number_n = torch.zeros_like(place_n).scatter(0, left_n, place_n[:num_left])
    return number_n[joined_n], oldest_n[left_n]


def group_sums(rows_NC: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Return each group's sum, (K, C); a matrix product, whose order of summation never changes."""
    member_KN = group_N == torch.arange(num_groups, device=group_N.device)[:, None]
    return member_KN.to(rows_NC.dtype) @ rows_NC


def group_means(rows_NC: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Return each group's mean, (K, C), computed in float32 and returned in the rows' type."""
    ones_N1 = rows_NC.new_ones(len(rows_NC), 1, dtype=torch.float32)
    return (group_sums(rows_NC.float(), group_N, num_groups) / group_sums(ones_N1, group_N, num_groups)).to(rows_NC)
