"""Validation: every held-out image counts once, and a training ends when its loss no longer falls."""

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_training import log_rows, progress_of, small_recipe, train_small

from dpbench.diffprune import checkpoint, resume, setup, validation
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import split
from dpbench.diffprune.example import Example
from dpbench.diffprune.objective import KeepRule, Objective
from dpbench.diffprune.resume import Progress
from dpbench.diffprune.sources import ToySource
from dpbench.diffprune.train import Training
from dpbench.diffprune.validation import measure_losses
from dpbench.errors import DpbenchError


def test_training_ends_when_validation_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    monkeypatch.setattr(validation, "measure_losses", lambda *_: {"full": 1.0, "hard": next(losses)})
    settings = {"steps": 9, "validate_every": 1, "patience": 2}
    ended = train_small(tmp_path / "early", **settings)
    assert (ended.step, ended.best) == (3, 2.0)
    assert checkpoint.read_card(tmp_path / "early", "toy-llava").step == 1
    assert train_small(tmp_path / "early", resume=True, **settings).step == 3


EIGHT_WORDS = ["a", "red", "square", "left", "of", "a", "blue", "circle", "below"]


class WordyPictures:
    """Toy scenes whose captions have one to eight words: a mean of means would not be the mean over tokens."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Example:
        return Example(ToySource(3)[index].image, " ".join(EIGHT_WORDS[: index % 8 + 1]))


class Meeting:
    """Sums over processes that are threads here: each waits until all have come."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.parts = world, threading.Barrier(world, timeout=60), dict[int, torch.Tensor]()

    def reduce(self, rank: int, values: torch.Tensor) -> torch.Tensor:
        self.parts[rank] = values
        self.barrier.wait()
        total = torch.stack([self.parts[i] for i in range(self.world)]).sum(0)
        self.barrier.wait()
        return total


@pytest.fixture(scope="module")
def objective() -> Objective:
    recipe = small_recipe()
    return setup._build_objective(recipe, setup._load_frozen_backbone(recipe, torch.device("cpu")))


@pytest.fixture(scope="module")
def losses_of(objective: Objective) -> Callable[..., list[dict[str, float]]]:
    """Validate 21 images in some processes, whose micro-batches may differ, and return the losses each has."""

    def measure(*micro_batches: int) -> list[dict[str, float]]:
        meeting = Meeting(len(micro_batches))

        def process(rank: int) -> dict[str, float]:
            accelerator = SimpleNamespace(
                process_index=rank,
                num_processes=len(micro_batches),
                device=torch.device("cpu"),
                reduce=lambda values, _: meeting.reduce(rank, values),
            )
            parts = setup.Setup(
                recipe=small_recipe(),
                accelerator=accelerator,  # type: ignore[arg-type]
                console=Console(quiet=True),
                source=WordyPictures(),
                split=split(40, fraction=1, num_validation=21, seed=0),
                broken=Broken(),
                keep_rule=KeepRule.parse("16,32"),
                num_steps=1,
                objective=objective,
                optimizer=torch.optim.AdamW(objective.scorer.parameters()),
            )
            return measure_losses(parts, Progress(0, micro_batches[rank]))

        with ThreadPoolExecutor(len(micro_batches)) as pool:
            return list(pool.map(process, range(len(micro_batches))))

    return measure


@pytest.fixture(scope="module")
def one_by_one(losses_of: Callable[..., list[dict[str, float]]], objective: Objective) -> dict[str, float]:
    """The losses of all 21 images, each on its own, averaged over their tokens without dpbench's loop."""
    (measured,) = losses_of(1)
    pictures = [WordyPictures()[int(i)] for i in split(40, fraction=1, num_validation=21, seed=0).validation]
    batches = [objective.encode([picture]) for picture in pictures]
    for name, losses in {
        "full": [objective.full_losses(batch) for batch in batches],
        "hard@16": [objective.hard_losses(batch, 16) for batch in batches],
        "hard@32": [objective.hard_losses(batch, 32) for batch in batches],
    }.items():
        assert measured[name] == pytest.approx(float(torch.cat(losses).double().mean()), rel=1e-5)
    assert len({len(objective.full_losses(batch)) for batch in batches}) > 4
    return measured


SLOW_MICRO_BATCHES = [(4,), (16,), (21,), (3, 3), (1,) * 23]
"""More of what the others pin: sizes that divide the images and that do not, one process and several."""


@pytest.mark.parametrize(
    "micro_batches",
    [(5,), (64,), (8, 1), (16, 2, 5), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SLOW_MICRO_BATCHES)],
)
def test_every_held_out_image_counts_with_any_micro_batch_and_number_of_processes(
    losses_of: Callable[..., list[dict[str, float]]], one_by_one: dict[str, float], micro_batches: tuple[int, ...]
) -> None:
    """A part of a batch at the end counts; one process may have halved its micro-batch; some may have no image."""
    for measured in losses_of(*micro_batches):
        assert measured == pytest.approx(one_by_one, rel=1e-5)


def test_a_training_that_ran_out_of_memory_validates_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The micro-batch halves in between, and is another one after resuming; the losses in the log do not move."""
    settings = {"steps": 2, "batch_size": 6, "num_validation": 7, "validate_every": 1, "lr": 1e-12}
    train_small(tmp_path / "undisturbed", **settings)
    real, steps = Objective.soft_losses, iter(range(9))

    def fail_once(self: Objective, *arguments: Any) -> torch.Tensor:
        if next(steps) == 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, *arguments)

    monkeypatch.setattr(Objective, "soft_losses", fail_once)
    train_small(tmp_path / "halved", **settings)
    assert progress_of(tmp_path / "halved")["micro_batch"] == 3
    hard = [row["hard"] for row in log_rows(tmp_path / "undisturbed") + log_rows(tmp_path / "halved") if "hard" in row]
    assert hard == pytest.approx([hard[0]] * 6, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_resumed_training_takes_the_micro_batch_it_is_given(tmp_path: Path, micro_batch: int | None) -> None:
    """Without one it goes on with the stored micro-batch, which may be smaller than it was at the start."""
    train_small(tmp_path, steps=1, batch_size=4)
    stored = tmp_path / resume.STATE
    with safe_open(stored, "pt") as file:
        metadata = file.metadata()
    metadata["state"] = json.dumps(json.loads(metadata["state"]) | {"micro_batch": 1})
    save_file(load_file(stored), stored, metadata)
    recipe = small_recipe(steps=1, batch_size=4, micro_batch=micro_batch)
    training = Training(setup.build_setup(recipe, Accelerator(cpu=True), Console(quiet=True)), tmp_path)
    training.restore()
    assert training.progress.micro_batch == (micro_batch or 1)


@pytest.mark.parametrize("first", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    losses = iter([first, 2.0, -math.inf, 1.5])
    monkeypatch.setattr(validation, "measure_losses", lambda *_: {"full": 1.0, "hard": next(losses)})
    ended = train_small(tmp_path / "late", steps=3, validate_every=1)
    assert ended.best == 1.5
    assert checkpoint.read_card(tmp_path / "late", "toy-llava").step == 3


def test_a_training_whose_losses_are_never_finite_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "measure_losses", lambda *_: {"full": 1.0, "hard": math.nan})
    with pytest.raises(DpbenchError, match="no validation loss was finite, so no scorer was kept"):
        train_small(tmp_path / "nan", steps=1)
    assert not (tmp_path / "nan" / "scorer.safetensors").exists()
