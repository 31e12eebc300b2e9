"""One optimiser step: the same in any micro-batch, and with or without checkpointed layers."""

from pathlib import Path

import pytest
import torch
from small_training import log_rows, progress_of, result_of, train_small

from dpbench.diffprune.objective import Objective
from dpbench.diffprune.step import cosine
from dpbench.errors import DpbenchError


def test_the_schedules_meet_their_ends() -> None:
    assert [cosine(1.0, 0.1, done) for done in (0, 0.5, 1, 2)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_micro_batches_and_checkpointed_layers_change_nothing(
    trained: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    train_small(tmp_path / "other", **change)
    for row, other in zip(log_rows(trained), log_rows(tmp_path / "other"), strict=True):
        assert row == pytest.approx(other, abs=2e-3)


ONE_STEP_OF_FOUR = {"steps": 1, "batch_size": 4, "num_validation": 4}


@pytest.fixture(scope="module")
def trained_in_twos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorers") / "twos"
    train_small(out, **ONE_STEP_OF_FOUR, micro_batch=2)
    return out


@pytest.mark.parametrize("name", ["soft_losses", "hard_losses"])
def test_out_of_memory_halves_the_micro_batch(
    trained_in_twos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In a step, and in a validation, where the first one already runs out of memory."""
    real = getattr(Objective, name)

    def run_out_of_memory(self: Objective, *arguments: object) -> torch.Tensor:
        if any(len(batch.prompts) > 2 for batch in arguments if hasattr(batch, "prompts")):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, *arguments)

    monkeypatch.setattr(Objective, name, run_out_of_memory)
    train_small(tmp_path / "halved", **ONE_STEP_OF_FOUR)
    weights, *rest = result_of(tmp_path / "halved")
    expected_weights, *expected_rest = result_of(trained_in_twos)
    assert progress_of(tmp_path / "halved")["micro_batch"] == 2
    if name == "soft_losses":  # the validation before the step still ran all images at once, and may keep its scorer
        del weights["scorer"], expected_weights["scorer"]
    else:
        assert rest == expected_rest
    assert weights == expected_weights


def test_memory_that_does_not_hold_one_image_ends_training_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Objective, "soft_losses", run_out_of_memory)
    with pytest.raises(DpbenchError, match="does not hold one image"):
        train_small(tmp_path / "starved")


def test_a_loss_that_is_not_finite_ends_training_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "soft_losses", lambda self, logits, *_: logits.flatten() * float("nan"))
    with pytest.raises(DpbenchError, match="the loss is nan at step 1"):
        train_small(tmp_path / "nan")
