"""What each throttler lets through, and whether its gradient is that of its forward: for the surrogate it is not."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpbench.diffprune.soft_topk import soft_topk
from dpbench.diffprune.throttler import (
    THROTTLERS,
    Gate,
    gumbel_noise,
    gumbel_ste,
    identity_ste,
    scale_gate,
    throttle,
    vp_noise,
)

WIDTH = 6
LEAK = 2e-4
"""What VP-Noise lets through at weights of exactly 0 or 1, which it holds 1e-9 away: sqrt(1e-9) of a normal sample."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gate(k: tuple[float, ...], num: int, tau: float = 0.5, valid: Tensor | None = None, width: int = WIDTH) -> Gate:
    rows = len(k)
    return Gate(
        k_R=torch.tensor(k, dtype=torch.float64),
        tau=tau,
        valid_RN=torch.ones(rows, num, dtype=torch.bool) if valid is None else valid,
        noise_RND=normal(rows, num, width, seed=7),
        gumbel_RN=gumbel_noise((rows, num), torch.Generator().manual_seed(8)),
    )


def rms(tokens: Tensor) -> Tensor:
    return tokens.square().mean(-1, keepdim=True).sqrt()


def differences(loss: Callable[[Tensor], Tensor], logits: Tensor, step: float = 1e-6) -> Tensor:
    """Central finite differences of a loss in every logit."""
    found = []
    for at in range(logits.numel()):
        shift = torch.zeros_like(logits).flatten()
        shift[at] = step
        shift = shift.view_as(logits)
        found.append((loss(logits + shift) - loss(logits - shift)) / (2 * step))
    return torch.stack(found).view_as(logits)


def test_a_weight_of_one_gives_the_token_and_of_zero_noise_at_its_size() -> None:
    tokens = (normal(2, 5, 64) + 3) * torch.tensor([0.01, 1, 30, 1000, 5], dtype=torch.float64)[:, None]
    noise = normal(2, 5, 64, seed=1)
    whole, none = torch.ones(2, 5), torch.zeros(2, 5)
    assert ((vp_noise(tokens, whole, noise) - tokens).abs() / rms(tokens)).max() < LEAK
    assert ((vp_noise(tokens, none, noise) - rms(tokens) * noise).abs() / rms(tokens)).max() < LEAK


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_power_is_preserved_and_shared_between_content_and_noise(share: float) -> None:
    """The means over 400,000 numbers are within 1 % of what they estimate, some six standard errors."""
    tokens, noise = 7 * (normal(1, 1, 400_000) + 1), normal(1, 1, 400_000, seed=1)
    size = float(rms(tokens))
    mixed = vp_noise(tokens, torch.tensor([[share]]), noise)
    assert float(rms(mixed)) == pytest.approx(size, rel=1e-2)
    assert float((mixed * tokens).mean()) / size**2 == pytest.approx(math.sqrt(share), abs=1e-2)
    assert float((mixed * noise).mean()) / size == pytest.approx(math.sqrt(1 - share), abs=1e-2)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_content_and_noise_have_the_shares_of_the_weight(share: float) -> None:
    tokens, noise = normal(2, 3, 8), normal(2, 3, 8, seed=1)
    wanted = math.sqrt(share) * tokens + math.sqrt(1 - share) * rms(tokens) * noise
    weights = torch.full((2, 3), share, dtype=torch.float64)
    torch.testing.assert_close(vp_noise(tokens, weights, noise), wanted, rtol=1e-12, atol=1e-12)
    single = vp_noise(tokens.float(), weights, noise.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, wanted.float(), rtol=1e-5, atol=1e-6)


def test_only_the_size_of_a_token_survives_a_weight_of_zero() -> None:
    one, other, noise = normal(1, 4, 64), normal(1, 4, 64, seed=5) + 2, normal(1, 4, 64, seed=1)
    other = other * rms(one) / rms(other)
    none = torch.zeros(1, 4)
    gone = vp_noise(one, none, noise)
    torch.testing.assert_close(gone, vp_noise(other, none, noise), rtol=0, atol=float(LEAK * rms(one).max()))
    torch.testing.assert_close(vp_noise(2 * one, none, noise), 2 * gone, rtol=1e-12, atol=0)


def test_gradients_are_finite_at_weights_of_exactly_zero_and_one() -> None:
    tokens, noise = normal(1, 5, WIDTH), normal(1, 5, WIDTH, seed=1)
    weights = torch.tensor([[0.0, 1.0, 1e-300, 1 - 1e-16, 0.5]], dtype=torch.float64, requires_grad=True)
    vp_noise(tokens, weights, noise).square().sum().backward()
    assert weights.grad.isfinite().all()
    assert weights.grad[0, 4] != 0


@pytest.mark.parametrize("name", list(THROTTLERS))
@pytest.mark.parametrize("tau", [1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_a_tiny_temperature(name: str, tau: float, dtype: torch.dtype) -> None:
    logits, tokens = normal(2, 9).to(dtype).requires_grad_(), normal(2, 9, WIDTH, seed=2).to(dtype)
    logits.data[0, 3] = logits.data[0].sort().values[-3]  # a tie at the boundary
    given = gate((3.0, 9.0), 9, tau)
    out = THROTTLERS[name](logits, tokens, given)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("throttler", [throttle, scale_gate])
@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_the_forward(
    throttler: Callable[[Tensor, Tensor, Gate], Tensor], tau: float, masked: bool
) -> None:
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1, 2:4] = not masked
    logits, tokens, given = normal(2, 8).requires_grad_(), normal(2, 8, WIDTH, seed=2), gate((2.0, 3.5), 8, tau, valid)
    assert torch.autograd.gradcheck(lambda each: throttler(each, tokens, given), (logits,))
    (found,) = torch.autograd.grad(throttler(logits, tokens, given).pow(3).sum(), logits)
    assert (found[valid] != 0).all()
    assert (found[~valid] == 0).all()


def test_the_weights_are_those_of_the_soft_top_k() -> None:
    logits, tokens, given = normal(2, 8), normal(2, 8, WIDTH, seed=2), gate((2.0, 3.5), 8)
    weights = soft_topk(logits, given.k_R, given.tau)
    torch.testing.assert_close(weights.sum(-1), given.k_R)
    torch.testing.assert_close(scale_gate(logits, tokens, given), weights[..., None] * tokens)
    torch.testing.assert_close(throttle(logits, tokens, given), vp_noise(tokens, weights, given.noise_RND))


def test_the_straight_through_mask_keeps_as_many_tokens_as_the_budget_says() -> None:
    tokens, given = normal(4, 9, WIDTH, seed=2), gate((3.0, 2.6, 0.2, 9.0), 9, tau=2.0)
    logits = normal(4, 9)
    passed = gumbel_ste(logits, tokens, given)
    kept = (passed != 0).any(-1)
    assert kept.sum(-1).tolist() == [3, 3, 1, 9]
    assert torch.equal(passed[kept], tokens[kept])
    perturbed = logits + given.tau * given.gumbel_RN
    for row in range(3):
        assert perturbed[row, kept[row]].min() > perturbed[row, ~kept[row]].max()
    quiet = (gumbel_ste(logits, tokens, replace(given, gumbel_RN=torch.zeros(4, 9))) != 0).any(-1)
    assert not torch.equal(quiet, kept)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_the_straight_through_mask_samples_from_the_softmax_at_its_temperature(tau: float) -> None:
    """The shares over 20,000 draws are within 2 % of what they estimate, more than five standard errors."""
    logits = torch.tensor([0.0, 0.5, -0.2, 0.7], dtype=torch.float64)
    given = gate((1.0,) * 20_000, 4, tau, width=1)
    passed = gumbel_ste(logits.expand(20_000, 4), torch.ones(20_000, 4, 1, dtype=torch.float64), given)
    torch.testing.assert_close(passed[..., 0].mean(0), (logits / tau).softmax(-1), rtol=0, atol=0.02)


def test_the_straight_through_gradient_is_not_that_of_its_forward_but_of_the_soft_weights() -> None:
    logits, tokens, given = normal(2, 9).requires_grad_(), normal(2, 9, WIDTH, seed=2), gate((3.0, 4.0), 9)
    direction = normal(2, 9, WIDTH, seed=3)

    def loss(each: Tensor) -> Tensor:
        return (gumbel_ste(each, tokens, given) * direction).sum()

    (analytic,) = torch.autograd.grad(loss(logits), logits)
    numeric = differences(loss, logits.detach())
    assert (numeric == 0).all()
    assert (analytic.abs() > 1e-4).any(-1).all()
    weights = soft_topk(logits + given.tau * given.gumbel_RN, given.k_R, given.tau)
    (wanted,) = torch.autograd.grad((weights[..., None] * tokens * direction).sum(), logits)
    torch.testing.assert_close(analytic, wanted, rtol=1e-10, atol=1e-12)
    assert not torch.autograd.gradcheck(
        lambda each: gumbel_ste(each, tokens, given), (logits,), raise_exception=False, check_undefined_grad=False
    )


def filler(tokens: Tensor, given: Gate, fill: str) -> Tensor:
    """What stands in for a dropped token, worked out token by token."""
    if fill == "zero":
        return torch.zeros_like(tokens)
    if fill == "noise":
        return rms(tokens) * given.noise_RND
    means = [row[valid].mean(0) for row, valid in zip(tokens, given.valid_RN, strict=True)]
    return torch.stack(means)[:, None].expand_as(tokens)


@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
@pytest.mark.parametrize("throttler", [gumbel_ste, identity_ste])
def test_a_fill_stands_in_for_dropped_tokens_and_the_gradient_knows_it(
    throttler: Callable[[Tensor, Tensor, Gate], Tensor], fill: Any
) -> None:
    valid = (torch.arange(9) < 7).expand(2, 9)
    logits, tokens = normal(2, 9).requires_grad_(), normal(2, 9, WIDTH, seed=2) + 1
    given = replace(gate((3.0, 4.0), 9, valid=valid), fill=fill)
    direction, wanted = normal(2, 9, WIDTH, seed=3), filler(tokens, given, fill)
    passed = throttler(logits, tokens, given)
    perturbed = logits + given.tau * given.gumbel_RN
    for row, k in enumerate((3, 4)):
        kept = perturbed[row].masked_fill(~valid[row], -math.inf).topk(k).indices
        dropped = torch.ones(9, dtype=torch.bool).index_fill(0, kept, False)
        torch.testing.assert_close(passed[row, kept], tokens[row, kept])
        torch.testing.assert_close(passed[row, dropped], wanted[row, dropped])
    (gradient,) = torch.autograd.grad((passed * direction).sum(), logits)
    of_mask = ((tokens - wanted) * direction).sum(-1)
    if throttler is gumbel_ste:
        weights = soft_topk(perturbed, given.k_R, given.tau, mask=valid)
        (of_mask,) = torch.autograd.grad((weights * of_mask).sum(), logits)
    torch.testing.assert_close(gradient, of_mask)


def test_the_finite_differences_used_against_the_surrogate_find_a_gradient_where_there_is_one() -> None:
    logits, tokens, given = normal(2, 9).requires_grad_(), normal(2, 9, WIDTH, seed=2), gate((3.0, 4.0), 9)
    (analytic,) = torch.autograd.grad(throttle(logits, tokens, given).pow(3).sum(), logits)
    numeric = differences(lambda each: throttle(each, tokens, given).pow(3).sum(), logits.detach())
    torch.testing.assert_close(numeric, analytic, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(THROTTLERS))
def test_tokens_that_are_not_there_let_nothing_through(name: str) -> None:
    valid = torch.arange(9) % 3 > 0
    logits = normal(2, 9).masked_fill(~valid, 100).requires_grad_()
    tokens, given = normal(2, 9, WIDTH, seed=2), gate((3.0, 4.0), 9, valid=valid.expand(2, 9))
    out = THROTTLERS[name](logits, tokens, given)
    alone = replace(
        given,
        valid_RN=given.valid_RN[:, valid],
        noise_RND=given.noise_RND[:, valid],
        gumbel_RN=given.gumbel_RN[:, valid],
    )
    torch.testing.assert_close(out[:, valid], THROTTLERS[name](logits[:, valid], tokens[:, valid], alone))
    if THROTTLERS[name] is throttle:
        noise = rms(tokens) * given.noise_RND
        torch.testing.assert_close(out[:, ~valid], noise[:, ~valid], rtol=0, atol=float(LEAK * rms(tokens).max()))
    else:
        assert (out[:, ~valid] == 0).all()


def test_gumbel_noise_is_standard_finite_and_a_function_of_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        return gumbel_noise((400, 500), torch.Generator().manual_seed(seed))

    noise = drawn(3)
    assert noise.dtype == torch.float64
    assert noise.isfinite().all()
    assert torch.equal(noise, drawn(3))
    assert not torch.equal(noise, drawn(4))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert float((noise < 0).double().mean()) == pytest.approx(math.exp(-1), abs=0.01)


@pytest.mark.parametrize("name", list(THROTTLERS))
def test_the_same_noise_gives_the_same_tokens(name: str) -> None:
    logits, tokens = normal(2, 9), normal(2, 9, WIDTH, seed=2)
    once = THROTTLERS[name](logits, tokens, gate((3.0, 4.0), 9))
    assert torch.equal(once, THROTTLERS[name](logits, tokens, gate((3.0, 4.0), 9)))
