"""The denoiser: the identity to begin with, and under the identity mask no token learns of another."""

import pytest
import torch
from torch import Tensor, nn

from dpbench.diffprune.denoiser import GAIN, Denoiser
from dpbench.diffprune.scorer import ScorerSize

SIZE = ScorerSize(width=24, hidden=16, heads=4, ffn=2)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def denoiser(attention: str = "identity", trained: bool = True) -> Denoiser:
    """A denoiser in float64, by default with an `up` that does something."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = Denoiser(SIZE, attention).double()
        if trained:
            nn.init.normal_(made.up.weight)
            nn.init.normal_(made.up.bias)
    return made


@pytest.mark.parametrize("attention", ["identity", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_begins_as_the_identity(attention: str, dtype: torch.dtype) -> None:
    tokens = normal(3, 7, 24, dtype=dtype)
    begun = denoiser(attention, trained=False).to(dtype)
    assert torch.equal(begun(tokens), tokens)
    begun(tokens).pow(3).sum().backward()
    assert begun.up.weight.grad.abs().min() > 0  # and can leave it


@pytest.mark.parametrize("attention", ["identity", "global"])
def test_tokens_of_another_scale_are_denoised_alike(attention: str) -> None:
    made, tokens = denoiser(attention), normal(2, 5, 24)
    denoised = made(tokens)
    assert (denoised - tokens).abs().mean() > 0.1 * GAIN
    torch.testing.assert_close(made(7 * tokens), 7 * denoised, rtol=1e-4, atol=1e-4)


def test_a_token_of_zeros_has_a_finite_gradient() -> None:
    """As a straight-through mask leaves it; the square root of its size has none."""
    tokens = normal(2, 5, 24).index_fill(1, torch.tensor([1, 3]), 0).requires_grad_()
    made = denoiser(trained=False)
    made(tokens).pow(3).sum().backward()
    assert tokens.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("train", [True, False])
def test_under_the_identity_mask_a_token_changes_no_other(train: bool) -> None:
    made, tokens = denoiser().train(train), normal(3, 7, 24)
    changed = tokens.clone()
    changed[1, 4] = normal(24, seed=1)
    with torch.set_grad_enabled(train):
        before, after = made(tokens), made(changed)
    other = torch.ones(3, 7, dtype=torch.bool)
    other[1, 4] = False
    assert torch.equal(before[other], after[other])
    assert (before[1, 4] != after[1, 4]).all()


def test_it_is_the_identity_mask_written_out() -> None:
    made, tokens = denoiser(), normal(3, 7, 24)
    off_diagonal = ~torch.eye(7, dtype=torch.bool)
    size = tokens.square().mean(-1, keepdim=True).sqrt()
    wanted = tokens + GAIN * size * made.up(made.block(made.down(made.norm(tokens)), mask=off_diagonal))
    torch.testing.assert_close(made(tokens), wanted, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(tokens), wanted, rtol=1e-10, atol=1e-10)
    unmasked = tokens + made.up(made.block(made.down(made.norm(tokens))))
    assert (unmasked - wanted).abs().max() > 1e-2


def test_global_attention_mixes_the_tokens_of_a_view_and_no_others() -> None:
    made, tokens = denoiser("global"), normal(3, 7, 24)
    changed = tokens.clone()
    changed[1, 4] = normal(24, seed=1)
    moved = (made(changed) - made(tokens)).abs().amax(-1)
    assert (moved[1] > 1e-6).all()
    assert (moved[[0, 2]] == 0).all()


def test_global_attention_leaves_padding_out() -> None:
    made, tokens, valid = denoiser("global"), normal(3, 7, 24), torch.arange(7) < torch.tensor([[7], [4], [1]])
    tokens[~valid] = 100 * normal(24, seed=2)
    out = made(tokens, valid)
    for row, size in enumerate((7, 4, 1)):
        torch.testing.assert_close(out[row, :size], made(tokens[row : row + 1, :size])[0], rtol=1e-10, atol=1e-10)
    assert (made(tokens)[1, :4] - out[1, :4]).abs().max() > 1e-3


def test_tokens_keep_their_type_and_shape() -> None:
    made = denoiser().float()
    tokens = normal(2, 5, 24, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = made(tokens)
    assert (out.dtype, out.shape) == (torch.float32, tokens.shape)
