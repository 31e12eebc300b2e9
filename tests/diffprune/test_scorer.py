"""The scorer: a function of the tokens and their places alone, whatever pads the batch and in whatever order."""

import pytest
import torch
from torch import Tensor

from dpbench.diffprune.scorer import Scorer, ScorerSize, encoder, lay_out, sine_code

SIZE = ScorerSize(width=24, hidden=16, heads=4, layers=2, ffn=2)
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scorer(size: ScorerSize = SIZE, dtype: torch.dtype = torch.float64) -> Scorer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Scorer(size).to(dtype)


def places(height: int, width: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Row and column of every token of a grid, (R, N) each."""
    row, col = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return row.expand(rows, -1), col.expand(rows, -1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 5), (24, 24)])
def test_there_is_one_logit_a_token(height: int, width: int) -> None:
    made = scorer(dtype=torch.float32)
    logits = made(normal(3, height * width, 24, dtype=torch.float32), *places(height, width, 3))
    assert (logits.shape, logits.dtype) == ((3, height * width), torch.float32)
    assert logits.isfinite().all()
    assert len(logits.unique()) == logits.numel()


@pytest.mark.parametrize("train", [True, False])
def test_views_padded_in_a_batch_score_as_they_do_alone(train: bool) -> None:
    made, grids = scorer().train(train), [(3, 4), (1, 5), (2, 2), (1, 1)]
    tokens = [normal(height * width, 24, seed=width) for height, width in grids]
    rows, cols = zip(*(places(*grid) for grid in grids), strict=True)
    views = lay_out([len(each) for each in tokens], [1] * 4, CPU)
    padded = views.rows(tokens)
    padded[~views.valid_RN] = 100 * normal(24, seed=9)
    with torch.set_grad_enabled(train):
        together = made(padded, views.rows([r[0] for r in rows]), views.rows([c[0] for c in cols]), views.padding_mask)
        for logits, *alone in zip(views.images(together), tokens, rows, cols, strict=True):
            torch.testing.assert_close(logits, made(alone[0][None], *alone[1:])[0], rtol=1e-10, atol=1e-10)


def test_the_order_of_the_tokens_means_nothing() -> None:
    made, tokens, (row, col) = scorer(), normal(1, 20, 24), places(4, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    logits = made(tokens, row, col)
    torch.testing.assert_close(
        made(tokens[:, order], row[:, order], col[:, order]), logits[:, order], rtol=0, atol=1e-10
    )
    moved = made(tokens[:, order], row, col)
    assert ((moved - logits[:, order]).abs() > 1e-6).all()


def test_the_place_of_a_token_counts() -> None:
    """The same tokens, all alike, differ by row and by column, and rows are not columns."""
    made = scorer()
    logits = made(normal(1, 1, 24).expand(1, 16, 24), *places(4, 4))[0].view(4, 4)
    assert (logits.diff(dim=0).abs() > 1e-6).all()
    assert (logits.diff(dim=1).abs() > 1e-6).all()
    assert ((logits - logits.T).abs() > 1e-6).sum() == 12


def test_the_code_of_a_place_is_sines_and_cosines_of_row_and_column() -> None:
    code = sine_code(torch.tensor([[3]]), torch.tensor([[5]]), 8)[0, 0]
    slow = 10_000**-0.5
    wanted = torch.tensor([3.0, 3 * slow, 3, 3 * slow, 5, 5 * slow, 5, 5 * slow])
    even = torch.tensor([True, True, False, False] * 2)
    torch.testing.assert_close(code, torch.where(even, wanted.sin(), wanted.cos()))


def test_other_tokens_of_the_view_count_those_of_other_views_do_not() -> None:
    made, tokens = scorer(), normal(2, 20, 24)
    changed = tokens.clone()
    changed[1, 4] = normal(24, seed=3)
    moved = (made(changed, *places(4, 5, 2)) - made(tokens, *places(4, 5, 2))).abs()
    assert (moved[1] > 1e-9).all()
    assert (moved[0] == 0).all()


def test_the_blocks_begin_different() -> None:
    first, second = encoder(16, 4, 2, 2).layers
    parts = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        if parameter.ndim > 1:
            assert (parameter != parts[name]).float().mean() > 0.99, name


def test_a_deployed_scorer_ranks_in_float32() -> None:
    made = scorer(dtype=torch.float32)
    wanted = made(normal(2, 20, 24, dtype=torch.float32), *places(4, 5, 2)).detach()
    served = made.deploy(CPU, torch.bfloat16)
    assert served is made
    types = {name: parameter.dtype for name, parameter in served.named_parameters()}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == {"head.weight", "head.bias"}
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert not served.training
    assert not any(parameter.requires_grad for parameter in served.parameters())
    logits = served(normal(2, 20, 24, dtype=torch.bfloat16), *places(4, 5, 2))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scorer_is_deployed_in_the_backbones_type(dtype: torch.dtype) -> None:
    served = scorer(dtype=torch.float32).deploy(CPU, dtype)
    assert {parameter.dtype for parameter in served.parameters()} == {dtype}
    assert served(normal(2, 20, 24, dtype=dtype), *places(4, 5, 2)).dtype == dtype


def test_the_head_ranks_in_float32_under_autocast_too() -> None:
    made = scorer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = made(normal(2, 20, 24, dtype=torch.float32), *places(4, 5, 2))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [False, True])
def test_training_and_serving_give_the_same_logits(dtype: torch.dtype, padded: bool) -> None:
    """In evaluation without gradients, torch runs the blocks by another path."""
    made = scorer(ScorerSize(width=24), dtype)
    tokens, grid = normal(3, 20, 24, dtype=dtype), places(4, 5, 3)
    valid = torch.arange(20) < torch.tensor([[20], [13], [2]]) if padded else None
    trained = made.train()(tokens, *grid, valid)
    with torch.inference_mode():
        served = made.eval()(tokens, *grid, valid)
    there = torch.ones(3, 20, dtype=torch.bool) if valid is None else valid
    torch.testing.assert_close(served[there], trained[there].detach(), rtol=0, atol=1e-5)


def test_images_of_several_views_are_laid_out_and_taken_apart_again() -> None:
    views = lay_out([12, 5, 4], [3, 1, 2], CPU)
    assert views.sizes == ((4, 4, 4), (5,), (2, 2))
    assert views.valid_RN.sum(-1).tolist() == [4, 4, 4, 5, 2, 2]
    assert views.valid_RN[0].tolist() == [True] * 4 + [False]
    images = [normal(12, 3), normal(5, 3, seed=1), normal(4, 3, seed=2)]
    rows = views.rows(images)
    assert rows.shape == (6, 5, 3)
    assert torch.equal(rows[1, :4], images[0][4:8])
    assert torch.equal(rows[5, :2], images[2][2:])
    assert (rows[~views.valid_RN] == 0).all()
    assert torch.equal(views.padding_mask, views.valid_RN)
    for there, back in zip(images, views.images(rows), strict=True):
        assert torch.equal(there, back)
    numbers = [torch.arange(len(each)) for each in images]
    for there, back in zip(numbers, views.images(views.rows(numbers)), strict=True):
        assert torch.equal(there, back)


def test_views_of_one_size_need_no_padding_mask() -> None:
    views = lay_out([12, 4], [3, 1], CPU)
    assert views.valid_RN.all()
    assert views.padding_mask is None
