"""The unit of the temperature: a training is the same whatever the scale of the visual tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from small_training import log_rows, progress_of, small_recipe, train_small
from torch import Tensor

from dpbench.diffprune.example import Example
from dpbench.diffprune.objective import Batch, Objective
from dpbench.diffprune.setup import build_setup
from dpbench.diffprune.spread import deviations, measure_spread
from dpbench.diffprune.step import cosine


def test_deviations_are_over_the_tokens_that_are_read() -> None:
    logits = torch.tensor([[1.0, 3.0, 100.0], [2.0, 2.0, 2.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert deviations(logits, valid).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_the_spread_is_the_mean_over_held_out_images_in_any_micro_batch(micro_batch: int) -> None:
    setup = build_setup(small_recipe(num_validation=5), Accelerator(cpu=True), Console(quiet=True))
    examples = [setup.source[index] for index in setup.split.validation]
    with torch.no_grad():
        logits_RN = setup.objective.logits(setup.objective.encode(examples))
    by_image = [float(row.double().std(correction=0)) for row in logits_RN]
    assert measure_spread(setup, micro_batch) == pytest.approx(sum(by_image) / 5, rel=5e-3)


def test_a_training_measures_its_spread_once_and_steps_at_that_temperature(trained: Path) -> None:
    spread, recipe = progress_of(trained)["spread"], small_recipe()
    assert spread != 1
    steps = [row for row in log_rows(trained) if "tau" in row]
    assert [row["tau"] for row in steps] == pytest.approx(
        [spread * cosine(*recipe.tau, step / 3) for step in range(3)], abs=1e-6
    )


def test_tokens_eight_times_as_large_give_the_same_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone whose projector gives, and whose LLM takes, tokens of another scale."""
    encode, losses = Objective.encode, Objective._losses

    def encode_larger(self: Objective, examples: Sequence[Example]) -> Batch:
        batch = encode(self, examples)
        return replace(batch, embeds=tuple(8 * embeds_ND for embeds_ND in batch.embeds))

    def read_smaller(self: Objective, batch: Batch, visual: Sequence[Tensor], *rest: Sequence[Tensor]) -> Tensor:
        return losses(self, batch, [embeds_ND / 8 for embeds_ND in visual], *rest)

    monkeypatch.setattr(Objective, "encode", encode_larger)
    monkeypatch.setattr(Objective, "_losses", read_smaller)
    train_small(tmp_path / "larger")
    assert progress_of(tmp_path / "larger")["spread"] == progress_of(trained)["spread"]
    for row, other in zip(log_rows(trained), log_rows(tmp_path / "larger"), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
