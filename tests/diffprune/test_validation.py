"""Validation: every held-out image counts once, and a training ends when its loss no longer falls."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_training import train_small

from dpbench.diffprune import checkpoint, validation
from dpbench.diffprune.data import split
from dpbench.diffprune.sources import ToySource


def test_training_ends_when_validation_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    monkeypatch.setattr(validation, "measure_losses", lambda *_: {"full": 1.0, "hard": next(losses)})
    settings = {"steps": 9, "validate_every": 1, "patience": 2}
    ended = train_small(tmp_path / "early", **settings)
    assert (ended.step, ended.best) == (3, 2.0)
    assert checkpoint.read_card(tmp_path / "early", "toy-llava").step == 1
    assert train_small(tmp_path / "early", resume=True, **settings).step == 3


def captions(rank: int, world: int, micro_batch: int) -> list[list[str]]:
    """Return the captions that one process validates, by micro-batch."""
    setup = SimpleNamespace(
        source=ToySource(0),
        split=split(1000, fraction=1, num_validation=10, seed=0),
        recipe=SimpleNamespace(seed=0, num_workers=0),
        accelerator=SimpleNamespace(process_index=rank, num_processes=world),
    )
    batches = validation._validation_batches(setup, micro_batch)  # type: ignore[arg-type]
    return [[example.caption for example in batch] for batch in batches]


@pytest.mark.parametrize("micro_batches", [(1, 1), (3, 3), (4, 1), (2, 16)])
def test_processes_share_the_images_whatever_micro_batch_each_has(micro_batches: tuple[int, int]) -> None:
    """One process may have run out of memory and halved its micro-batch when the other has not."""
    parts = [captions(rank, 2, micro_batch) for rank, micro_batch in enumerate(micro_batches)]
    for part, micro_batch in zip(parts, micro_batches, strict=True):
        assert max(map(len, part)) == min(micro_batch, 5)
    ((everything,),) = [captions(0, 1, 10)]
    assert len(everything) == 10
    merged = np.concatenate([np.concatenate(part) for part in parts])
    assert sorted(merged) == sorted(everything)
    assert [caption for batch in parts[0] for caption in batch] == everything[::2]
