"""Soft top-k against the official vectors, finite differences, and every case in which a careless one breaks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dpbench.diffprune.soft_topk import hard_topk_mask, soft_topk, straight_through

VECTORS = sorted((Path(__file__).parents[1] / "goldens").glob("softtopk_public_*.npz"))
KERNELS = ("laplace", "sigmoid")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(got: Tensor, wanted: np.ndarray, rel: float) -> None:
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got.detach().double().numpy(), wanted, rtol=rel, atol=rel * scale)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("dtype", "rel", "rel_grad"), [(torch.float64, 1e-7, 1e-7), (torch.float32, 2e-4, 2e-3)])
def test_official_vectors(path: Path, dtype: torch.dtype, rel: float, rel_grad: float) -> None:
    with np.load(path) as stored:
        vector = {name: stored[name] for name in stored.files}
    scores = torch.tensor(vector["scores"], dtype=dtype, requires_grad=True)
    k, tau = (torch.tensor(vector[name], dtype=torch.float64, requires_grad=True) for name in ("k", "tau"))
    weights = soft_topk(scores, k, tau)
    assert weights.dtype == dtype
    close(weights, vector["p"], rel)
    weights.backward(torch.tensor(vector["cotangent"], dtype=dtype))
    close(scores.grad, vector["grad_scores"], rel_grad)
    close(k.grad, vector["grad_k"], rel_grad)
    close(tau.grad, vector["grad_tau"], rel_grad)
    close(soft_topk(scores, k, tau, kernel="sigmoid"), vector["p_sigmoid_own"], rel)


def test_there_are_vectors() -> None:
    assert len(VECTORS) == 4


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_the_forward(kernel: str, tau: float, masked: bool) -> None:
    scores = normal(3, 9).requires_grad_()
    k = torch.tensor([1.0, 2.5, 4.0], dtype=torch.float64, requires_grad=True)
    taus = torch.tensor([tau, 2 * tau, tau], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 2:5] = not masked
    assert torch.autograd.gradcheck(lambda s, k, t: soft_topk(s, k, t, kernel=kernel, mask=mask), (scores, k, taus))
    one = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: soft_topk(scores, k, t, kernel=kernel), (one,))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [8, 576, 2880])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_weights_sum_to_the_budget(kernel: str, size: int, scale: float) -> None:
    scores = normal(6, size) * scale
    scores[3, : size // 2] = scores[3, 0]
    k = torch.tensor([1, 0.3 * size, size / 2, 1.5, size - 1, 0.01 * size], dtype=torch.float64)
    for tau in (1e-4, 1e-2, 1.0, 100.0):
        weights = soft_topk(scores, k, tau, kernel=kernel)
        assert (weights.sum(-1) - k).abs().max() < 1e-6
        assert (weights >= 0).all()
        assert (weights <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [50.0, 120.0, 400.0, 2000.0])
def test_a_wide_gap_at_the_boundary_is_the_hard_mask(dtype: torch.dtype, gap: float) -> None:
    tau = 1e-3
    scores = torch.cat([normal(5) * tau, normal(20, seed=1) * tau - gap * tau]).to(dtype).requires_grad_()
    weights = soft_topk(scores, 5, tau)
    assert torch.allclose(weights, torch.cat([torch.ones(5), torch.zeros(20)]).to(dtype), atol=1e-6)
    assert abs(float(weights.detach().double().sum()) - 5) < 1e-6
    weights.square().sum().backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_ties_share_their_mass(kernel: str) -> None:
    assert torch.allclose(soft_topk(torch.zeros(2, 10), 3, 0.1, kernel=kernel), torch.full((2, 10), 0.3))
    tied = torch.tensor([9.0, 5.0, 5.0, 5.0, 5.0, 0.0])
    wanted = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.0])
    assert torch.allclose(soft_topk(tied, 3, 1e-2, kernel=kernel), wanted, atol=1e-6)


def test_only_the_differences_between_scores_count() -> None:
    scores = normal(4, 576, dtype=torch.float32)
    far = (scores.double() + 1000).float()
    close(soft_topk(far, 64, 0.01), soft_topk(far.double() - 1000, 64, 0.01).numpy(), 1e-5)
    close(soft_topk(scores * 8, 64, 0.8), soft_topk(scores, 64, 0.1).double().numpy(), 1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_monotone_and_between_its_limits(kernel: str) -> None:
    scores = normal(3, 100)
    order = scores.argsort(descending=True)
    weights = soft_topk(scores, 10, 0.3, kernel=kernel).gather(-1, order)
    assert (weights.diff(dim=-1) <= 0).all()
    assert torch.allclose(soft_topk(scores, 10, 1e7, kernel=kernel), torch.full((3, 100), 0.1).double(), atol=1e-5)
    hard = soft_topk(scores, 10, 1e-6, kernel=kernel)
    assert torch.allclose(hard, hard_topk_mask(scores, 10).double(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_give_float32_weights(dtype: torch.dtype) -> None:
    scores = normal(2, 64, dtype=dtype).requires_grad_()
    weights = soft_topk(scores, 7, 0.1)
    assert weights.dtype == torch.float32
    assert (weights.sum(-1) - 7).abs().max() < 1e-5
    weights[:, 0].sum().backward()
    assert scores.grad.dtype == dtype


@pytest.mark.parametrize("kernel", KERNELS)
def test_budgets_at_and_beyond_the_ends_are_all_or_nothing(kernel: str) -> None:
    scores = normal(5, 6).requires_grad_()
    k = torch.tensor([-1.0, 0.0, 6.0, 7.5, 3.0], dtype=torch.float64, requires_grad=True)
    weights = soft_topk(scores, k, 0.5, kernel=kernel)
    assert torch.equal(weights[:4], torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)[:, None].expand(4, 6))
    weights.square().sum().backward()
    assert (scores.grad[:4] == 0).all()
    assert (k.grad[:4] == 0).all()
    assert (scores.grad[4] != 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_masked_items_do_not_exist(kernel: str) -> None:
    scores, mask = normal(2, 12), torch.arange(12) % 3 > 0
    scores[:, ::3] = 1e3
    scores.requires_grad_()
    weights = soft_topk(scores, 3, 0.2, kernel=kernel, mask=mask)
    alone = soft_topk(scores[:, mask], 3, 0.2, kernel=kernel)
    assert torch.allclose(weights[:, mask], alone, atol=1e-12)
    assert (weights[:, ~mask] == 0).all()
    weights.square().sum().backward()
    assert (scores.grad[:, ~mask] == 0).all()
    few = soft_topk(scores, 8, 0.2, kernel=kernel, mask=mask)
    assert torch.equal(few, mask.double().expand(2, 12))
    assert (soft_topk(scores, 3, 0.2, kernel=kernel, mask=torch.zeros(12, dtype=torch.bool)) == 0).all()


def test_the_callers_tensors_are_left_alone() -> None:
    scores, k, tau = normal(2, 20).requires_grad_(), torch.tensor([3.0, 4.0]), torch.tensor(0.1)
    before = [each.detach().clone() for each in (scores, k, tau)]
    soft_topk(scores.sigmoid(), k, tau).square().sum().backward()
    assert all(torch.equal(each, was) for each, was in zip((scores, k, tau), before, strict=True))


def test_differentiating_twice_is_refused() -> None:
    scores = normal(8).requires_grad_()
    (first,) = torch.autograd.grad(soft_topk(scores, 3, 0.5).square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_hard_top_k_takes_the_earlier_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert hard_topk_mask(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert hard_topk_mask(scores, torch.tensor([1, 3])).sum(-1).tolist() == [1, 3]
    mask = torch.tensor([True, False, True, True])
    assert hard_topk_mask(scores, 2, mask).tolist() == [[False, False, True, True], [True, False, True, False]]


def test_straight_through_runs_one_function_and_differentiates_another() -> None:
    scores = normal(10).requires_grad_()
    soft = soft_topk(scores, 3, 0.5)
    hard = hard_topk_mask(scores, 3)
    mixed = straight_through(hard, soft)
    assert torch.equal(mixed.detach(), hard.double())
    (grad,) = torch.autograd.grad(mixed.square().sum(), scores, retain_graph=True)
    (wanted,) = torch.autograd.grad(soft, scores, 2 * hard.double())
    assert torch.allclose(grad, wanted)
