"""Information throttlers: how much of a token reaches the LLM, as a function of its retention weight.

VP-Noise (DiffPrune section 4.3) is the paper's; the scale gate and the straight-through masks are its controls
(Table 5, equation 1). All take scorer logits, so that the path from logits to loss is one function per variant.

Shape letters: R rows (one view each), N visual tokens of a view, D the LLM's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpbench.diffprune.recipe import Fill
from dpbench.diffprune.soft_topk import hard_topk_mask, soft_topk, straight_through

LEAST_WEIGHT = 1e-9
"""Weights are clamped this far from 0 and 1, where the square roots of VP-Noise have an infinite slope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Inputs of a throttler besides logits and tokens.

    Attributes:
        k_R: float64, the budget of each row.
        tau: temperature of the soft top-k.
        valid_RN: bool, False for padding and for tokens the LLM never reads.
        noise_RND: standard normal, in the tokens' type.
        gumbel_RN: standard Gumbel.
        fill: what a straight-through mask puts in the place of a dropped token: zeros, the mean token of its view, or
            noise as loud as the token.
    """

    k_R: Tensor
    tau: float
    valid_RN: Tensor
    noise_RND: Tensor
    gumbel_RN: Tensor
    fill: Fill = "zero"


def vp_noise(tokens_RND: Tensor, weights_RN: Tensor, noise_RND: Tensor) -> Tensor:
    """Return sqrt(p) x + sqrt(1 - p) eps on tokens of unit root mean square, at their own scale again.

    A token is divided by its root mean square over D, mixed with the noise, and multiplied by it again. So content and
    noise have equal power in every token, and only the size of a token always gets through.
    """
    share = weights_RN.double().clamp(LEAST_WEIGHT, 1 - LEAST_WEIGHT)[..., None]
    scale = root_mean_square(tokens_RND)
    content, noise = (part.sqrt().to(tokens_RND.dtype) for part in (share, 1 - share))
    return content * tokens_RND + noise * (scale * noise_RND)


def root_mean_square(tokens_RND: Tensor) -> Tensor:
    """Return the root mean square of every token over its D values, (R, N, 1); its gradient at a zero token is zero."""
    norm: Tensor = torch.linalg.vector_norm(tokens_RND, dim=-1, keepdim=True)
    return norm / math.sqrt(tokens_RND.shape[-1])


def throttle(logits_RN: Tensor, tokens_RND: Tensor, gate: Gate) -> Tensor:
    """Throttle by VP-Noise under soft top-k weights (the paper's throttler)."""
    return vp_noise(tokens_RND, _weights(logits_RN, gate), gate.noise_RND)


def scale_gate(logits_RN: Tensor, tokens_RND: Tensor, gate: Gate) -> Tensor:
    """Multiply tokens by their soft top-k weight: differentiable, but the direction of a token gets through."""
    return _weights(logits_RN, gate).to(tokens_RND.dtype)[..., None] * tokens_RND


def gumbel_ste(logits_RN: Tensor, tokens_RND: Tensor, gate: Gate) -> Tensor:
    """Drop all but the hard top-k of Gumbel-perturbed logits; the gradient is that of the soft top-k instead."""
    perturbed = _perturb(logits_RN, gate)
    return _drop(tokens_RND, straight_through(_hard_mask(perturbed, gate), _weights(perturbed, gate)), gate)


def identity_ste(logits_RN: Tensor, tokens_RND: Tensor, gate: Gate) -> Tensor:
    """Drop the same tokens, and pass the mask's gradient to the logits as it is (equation 1)."""
    perturbed = _perturb(logits_RN, gate)
    return _drop(tokens_RND, straight_through(_hard_mask(perturbed, gate), perturbed), gate)


def _perturb(logits_RN: Tensor, gate: Gate) -> Tensor:
    """Return s + tau g: its top-k is a sample without replacement from softmax(s / tau).

    In the units of s the noise fades with the temperature, as the softness does.
    """
    return logits_RN + gate.tau * gate.gumbel_RN


def _hard_mask(perturbed_RN: Tensor, gate: Gate) -> Tensor:
    return hard_topk_mask(perturbed_RN, gate.k_R.round().clamp(min=1), gate.valid_RN)


def _drop(tokens_RND: Tensor, mask_RN: Tensor, gate: Gate) -> Tensor:
    """Return the tokens where the mask is 1 and the fill where it is 0; the gradient reaches the mask through both."""
    mask = mask_RN.to(tokens_RND.dtype)[..., None]
    if gate.fill == "zero":
        return mask * tokens_RND
    if gate.fill == "noise":
        return mask * tokens_RND + (1 - mask) * root_mean_square(tokens_RND) * gate.noise_RND
    valid = gate.valid_RN.to(tokens_RND.dtype)[..., None]
    mean = (valid * tokens_RND).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    return mask * tokens_RND + (1 - mask) * mean


def _weights(logits_RN: Tensor, gate: Gate) -> Tensor:
    return soft_topk(logits_RN, gate.k_R, gate.tau, mask=gate.valid_RN, out_dtype=torch.float64)


THROTTLERS: dict[str, Callable[[Tensor, Tensor, Gate], Tensor]] = {
    "diffprune": throttle,
    "global-denoiser": throttle,
    "scale-gate": scale_gate,
    "gumbel-ste": gumbel_ste,
    "identity-ste": identity_ste,
}
"""The throttler of each variant; "global-denoiser" differs in the denoiser only."""


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise, float64, on the generator's device."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
