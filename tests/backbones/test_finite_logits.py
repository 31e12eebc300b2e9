"""An answer decoded from logits that are not numbers is no answer, row by row."""

import pytest
import torch

from dpbench.backbones import miniatures
from dpbench.backbones.finite_logits import FiniteLogits


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_row_that_was_not_finite_once_stays_marked(bad: float, step: int) -> None:
    watch, scores = FiniteLogits(), torch.randn(3, 3, 50)
    scores[step, 1, 7] = bad
    for logits in scores:
        assert watch(torch.zeros(3, 1), logits) is logits
    assert watch.rows(3) == [True, False, True]


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_one_row_of_a_batch_overflows_and_the_others_are_answered(family: str) -> None:
    model = miniatures.backbone(family, torch.float32)
    embeds = torch.randn(3, 5, 32)
    embeds[1, 2] = float("nan")
    positions = torch.arange(5).expand(3 if model.mrope else 1, 3, 5)
    texts = model.generate(embeds, torch.ones(3, 5, dtype=torch.int64), positions, max_new_tokens=3)
    assert [text is None for text in texts] == [False, True, False]
