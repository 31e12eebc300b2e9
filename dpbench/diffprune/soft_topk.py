"""Budgeted soft top-k: weights in (0, 1) that sum to the budget, with their exact gradient.

p_i = F((s_i - theta) / tau), theta such that the p_i sum to k (DiffPrune section 4.2). For the Laplace distribution
function theta has a closed form after one sort (LapSum: Struski et al., ICML 2025); the logistic one's is bisected.
Everything is solved in float64 and in logarithms, centred on the k-th score: exact for any scale of scores and any tau.

Shape letters: R rows, N items of a row.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Kernel = Literal["laplace", "sigmoid"]
FAR = 1e4
"""Distance of masked items below the lowest valid one, in units of tau: their weight is 0 in float64."""
BISECTIONS = 80


def soft_topk(
    scores: Tensor,
    k: float | Tensor,
    tau: float | Tensor,
    kernel: Kernel = "laplace",
    mask: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return retention weights (..., N) that sum to `k` in every row.

    Monotone in the scores, so the hard top-k at inference keeps the same order. As tau -> 0 it becomes the hard top-k
    mask, as tau -> infinity k/N everywhere. Differentiable once, in scores, k and tau.

    Args:
        scores: (..., N), any floating-point type, left unchanged.
        k: budget, a number or (...); a row gets all zeros for k <= 0 and all ones for k >= its valid items.
        tau: temperature > 0, a number or (...), in the units of the scores.
        kernel: the distribution function F.
        mask: (..., N) bool, False for items that are ignored and get 0.
        out_dtype: by default float64 for float64 scores, else float32. In half precision the sum is off by percents.
    """
    rows = scores.shape[:-1]
    budget = torch.as_tensor(k, dtype=torch.float64, device=scores.device).expand(rows)
    scale = torch.as_tensor(tau, dtype=torch.float64, device=scores.device).expand(rows)
    weights: Tensor = _SoftTopK.apply(scores.double(), budget, scale, kernel, mask)
    return weights.to(out_dtype or (torch.float64 if scores.dtype == torch.float64 else torch.float32))


def hard_topk_mask(scores: Tensor, k: int | Tensor, mask: Tensor | None = None) -> Tensor:
    """Return which of the items (..., N) are among the `k` highest, bool; ties go to the lower index.

    Args:
        scores: (..., N).
        k: how many to keep, a number or (...).
        mask: (..., N) bool, False for items that are never kept.
    """
    valued = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    order = valued.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    kept = ranks < torch.as_tensor(k, device=scores.device)[..., None]
    return kept if mask is None else kept & mask


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return `hard`, with the gradient of `soft` as a surrogate."""
    return hard.to(soft.dtype) + (soft - soft.detach())


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: Tensor, tau: Tensor, kernel: Kernel, mask: Tensor | None) -> Tensor:
        valid = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
        num_valid = valid.sum(-1)
        solvable = (k > 0) & (k < num_valid)
        safe = torch.where(solvable, k, (num_valid / 2).clamp(min=0.5))  # has a root; the row is overwritten below
        items = _center(scores, safe, tau, valid)
        offset = items - _THRESHOLDS[kernel](items, safe, num_valid.clamp(min=1))[..., None]
        weights = torch.where(solvable[..., None], _cdf(offset, kernel), (k >= num_valid)[..., None].double())
        ctx.save_for_backward(offset, tau, valid, solvable)
        ctx.kernel = kernel
        return weights.masked_fill_(~valid, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the analytic Jacobian: diag(f) - f f^T / sum(f), over tau."""
        offset, tau, valid, solvable = ctx.saved_tensors
        live = valid & solvable[..., None]
        log_density = _log_density(offset, ctx.kernel)
        share = log_density.masked_fill(~valid, -math.inf).softmax(-1).masked_fill(~live, 0)
        density = log_density.exp().masked_fill(~live, 0) / tau[..., None]
        mean = (share * upstream).sum(-1)
        drift = (share * offset).sum(-1, keepdim=True) - offset
        return density * (upstream - mean[..., None]), mean, (upstream * density * drift).sum(-1), None, None


def _center(scores: Tensor, k: Tensor, tau: Tensor, valid: Tensor) -> Tensor:
    """Return scores in units of tau, 0 at the ceil(k)-th highest, masked items far below all others.

    Centring before the division keeps precision near the threshold, where the weights change.
    """
    ranked = scores.masked_fill(~valid, -math.inf).sort(dim=-1, descending=True).values
    last = (k.ceil().long() - 1).clamp(0, scores.shape[-1] - 1)
    items = (scores - ranked.gather(-1, last[..., None])) / tau[..., None]
    lowest = items.masked_fill(~valid, math.inf).amin(-1, keepdim=True).nan_to_num(0, 0, 0)
    return torch.where(valid, items, lowest - FAR)


def _laplace_threshold(items: Tensor, k: Tensor, num_valid: Tensor) -> Tensor:
    """Solve for the threshold in closed form, 0 < k < valid items.

    `log_above` holds, per item from the highest, the log of the sum of exp(own - other) over items at or above it,
    `log_below` that of exp(other - own) over those at or below. Between two neighbours the budget is quadratic in the
    exponential of the threshold; its root is taken in logarithms because it underflows when the gap is wide.
    """
    ranked = items.sort(dim=-1, descending=True).values
    log_above = ranked + (-ranked).logcumsumexp(-1)
    log_below = ranked.flip(-1).logcumsumexp(-1).flip(-1) - ranked
    numbers = torch.arange(items.shape[-1], device=items.device) + 0.5
    mass = (numbers + (log_below.exp() - log_above.exp()) / 2).cummax(-1).values
    above = torch.searchsorted(mass, k[..., None].contiguous())
    upper, lower = (above - 1).clamp(min=0), above.clamp(max=items.shape[-1] - 1)
    top, bottom = ranked.gather(-1, upper), ranked.gather(-1, lower)
    log_p = torch.where(above > 0, log_above.gather(-1, upper), -math.inf)
    log_q = torch.where(above < items.shape[-1], log_below.gather(-1, lower), -math.inf)
    excess = k[..., None] - above
    log_excess = excess.abs().log()
    log_root = torch.logaddexp(2 * log_excess, log_p + log_q - (top - bottom)) / 2
    log_z = torch.logaddexp(log_excess, log_root)
    return torch.where(excess > 0, bottom + log_q - log_z, top - log_p + log_z)[..., 0]


def _sigmoid_threshold(items: Tensor, k: Tensor, num_valid: Tensor) -> Tensor:
    """Bisect for the threshold, 0 < k < valid items: every weight is at least k/N at one end, at most at the other."""
    shift = torch.logit((k / num_valid).clamp(1e-300, 1 - 1e-16))
    low, high = items.amin(-1) - shift, items.amax(-1) - shift
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        excess = (items - middle[..., None]).sigmoid().sum(-1) > k
        low, high = torch.where(excess, middle, low), torch.where(excess, high, middle)
    return (low + high) / 2


_THRESHOLDS = {"laplace": _laplace_threshold, "sigmoid": _sigmoid_threshold}


def _cdf(offset: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "sigmoid":
        return offset.sigmoid()
    tail = (-offset.abs()).exp() / 2
    return torch.where(offset <= 0, tail, 1 - tail)


def _log_density(offset: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "sigmoid":
        return logsigmoid(offset) + logsigmoid(-offset)
    return -offset.abs() - math.log(2)
