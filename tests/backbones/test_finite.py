"""An answer decoded from logits that are not numbers is no answer, row by row."""

from dataclasses import fields

import pytest
import torch
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.backbones.base import Features
from dpbench.backbones.finite import FiniteLogits, are_finite, explain_not_finite


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


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_an_image_with_a_signal_that_is_not_finite_is_told_from_the_others(family: str) -> None:
    """A method that chose by it would choose anything, and the answer would look like one."""
    model = miniatures.backbone(family, torch.float32)
    pixels = model.preprocess([Image.new("RGB", (60, 60), (level, 0, 0)) for level in (0, 99, 255)])
    features = model.encode(pixels, model.provides)
    assert are_finite(features) == [True, True, True]
    signals = [value for value in vars_of(features[1]) if value.is_floating_point() and value.numel() > 32]
    assert len(signals) >= 3
    for signal in signals:
        last = (-1,) * signal.ndim
        kept, signal[last] = signal[last].clone(), float("nan")
        assert are_finite(features)[1] is False
        signal[last] = kept
    assert all(are_finite(features))


def vars_of(features: Features) -> list[torch.Tensor]:
    values = [getattr(features, declared.name) for declared in fields(features)]
    tensors = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return [part for part in tensors if isinstance(part, torch.Tensor)]


def test_what_to_do_depends_on_the_type_of_the_weights() -> None:
    assert "give --dtype bfloat16" in explain_not_finite("the logits are", torch.float16)
    assert "dtype" not in explain_not_finite("the logits are", torch.float32)
