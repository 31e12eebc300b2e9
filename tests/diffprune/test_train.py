"""Training: the same after any interruption, the same in any micro-batch, kept by what is deployed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from dpbench.cli.commands import app
from dpbench.diffprune import checkpoint
from dpbench.diffprune.objective import Objective
from dpbench.diffprune.recipe import Recipe, make_recipe
from dpbench.diffprune.resume import STATE
from dpbench.diffprune.train import Training, cosine, train
from dpbench.errors import ConfigError, DpbenchError

SMALL = {
    "dtype": "float32",
    "steps": 4,
    "batch_size": 4,
    "num_validation": 4,
    "validate_every": 2,
    "keep": "16,32",
    "hidden": 16,
}


def small(**changes: object) -> Recipe:
    return make_recipe("toy-llava", {**SMALL, **changes})


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / STATE)


def saved_step(folder: Path) -> int:
    with safe_open(folder / STATE, "pt") as file:
        return json.loads(file.metadata()["state"])["step"]


def assert_same(one: Path, other: Path) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorers") / "whole"
    train(small(), out)
    return out


def test_a_training_leaves_a_scorer_its_card_and_its_numbers(trained: Path) -> None:
    card = checkpoint.read_card(trained, "toy-llava")
    assert (card.variant, card.keep, card.seed, card.data) == ("diffprune", "16,32", 0, "toy")
    assert card.losses.keys() == {"full", "hard", "hard@16", "hard@32"}
    assert checkpoint.load(trained, "toy-llava", 128).size.hidden == 16
    steps = [row for row in rows(trained) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all({"tau", "lr", "mass_on_top_k", "images_per_s"} <= row.keys() for row in steps)
    assert [row["step"] for row in rows(trained) if "hard" in row] == [0, 2, 4]
    assert list((trained / "tensorboard").glob("events*"))
    assert not list(trained.glob("*.part"))


def test_the_scorer_on_disk_is_the_best_as_deployed(trained: Path) -> None:
    validations = {row["step"]: row["hard"] for row in rows(trained) if "hard" in row}
    card = checkpoint.read_card(trained, "toy-llava")
    assert card.step == min(validations, key=lambda step: validations[step])
    assert card.losses["hard"] == pytest.approx(min(validations.values()), abs=1e-5)


def test_a_killed_training_goes_on_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    settings = [word for name, value in SMALL.items() for word in ("--param", f"{name}={value}")]
    command = [sys.executable, "-m", "dpbench", "train", "--backbone", "toy-llava", "--out", str(out), *settings]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    # the reference is not saved between steps; a killed one has to be
    with subprocess.Popen([*command, "--param", "save_minutes=0"], env=os.environ | threads) as process:
        while not (out / STATE).is_file() or saved_step(out) == 0:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < saved_step(out) < SMALL["steps"]
    train(small(save_minutes=0), out, resume=True)
    assert_same(out, trained)


def test_ctrl_c_saves_after_the_step(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Training._step

    def interrupted(self: Training, examples: list) -> dict[str, float]:
        if self.state.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, examples)

    monkeypatch.setattr(Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path / "stopped")
    monkeypatch.undo()
    assert len([row for row in rows(tmp_path / "stopped") if "loss" in row]) == 2
    train(small(), tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", trained)


def test_the_micro_batch_changes_nothing(trained: Path, tmp_path: Path) -> None:
    train(small(micro_batch=1), tmp_path / "ones")
    whole, ones = rows(trained), rows(tmp_path / "ones")
    for mine, theirs in zip(whole, ones, strict=True):
        name = "loss" if "loss" in mine else "hard"
        assert mine[name] == pytest.approx(theirs[name], abs=2e-3)


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Objective.soft_losses

    def hungry(self: Objective, logits: torch.Tensor, batch: object, gate: object) -> torch.Tensor:
        if len(logits) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, logits, batch, gate)

    monkeypatch.setattr(Objective, "soft_losses", hungry)
    train(small(), tmp_path / "hungry")
    monkeypatch.undo()
    train(small(micro_batch=2), tmp_path / "twos")
    assert_same(tmp_path / "hungry", tmp_path / "twos")

    def starving(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Objective, "soft_losses", starving)
    with pytest.raises(DpbenchError, match="does not hold one image"):
        train(small(), tmp_path / "starved")


def test_a_loss_that_is_not_finite_ends_training_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "soft_losses", lambda self, logits, *_: logits.flatten() * float("nan"))
    with pytest.raises(DpbenchError, match="the loss is nan at step 1"):
        train(small(), tmp_path / "nan")


def test_training_ends_when_validation_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    monkeypatch.setattr(Training, "_validation_losses", lambda self: {"full": 1.0, "hard": next(losses)})
    ended = train(small(steps=9, validate_every=1, patience=2), tmp_path / "early")
    assert (ended.step, ended.best) == (3, 2.0)
    assert checkpoint.read_card(tmp_path / "early", "toy-llava").step == 1
    assert train(small(steps=9, validate_every=1, patience=2), tmp_path / "early", resume=True).step == 3


def test_the_backbone_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {}
    real = Training.run

    def watched(self: Training, asked: object) -> None:
        before = {name: value.clone() for name, value in self.backbone.model.state_dict().items()}
        real(self, asked)
        after = self.backbone.model.state_dict()
        kept["same"] = all(torch.equal(value, after[name]) for name, value in before.items())

    monkeypatch.setattr(Training, "run", watched)
    train(small(steps=1), tmp_path / "one")
    assert kept["same"]


def test_gradient_checkpointing_changes_nothing(trained: Path, tmp_path: Path) -> None:
    train(small(gradient_checkpointing=True), tmp_path / "again")
    for mine, theirs in zip(rows(trained), rows(tmp_path / "again"), strict=True):
        assert {k: v for k, v in mine.items() if k != "images_per_s"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "images_per_s"}, abs=2e-3
        )


def test_the_schedules_meet_their_ends() -> None:
    assert [cosine(1.0, 0.1, done) for done in (0, 0.5, 1, 2)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backbone", "toy-lava"], "did you mean 'toy-llava'"),
        (["--backbone", "toy-llava", "--keep", "many"], "'many' is no budget"),
        (["--backbone", "toy-llava", "--param", "tua=1"], "did you mean 'tau'"),
        (["--backbone", "toy-llava", "--param", "lr=-1"], "greater than 0, got -1"),
        (["--backbone", "toy-llava", "--param", "tau=[1, 0]"], "above 0"),
        (["--backbone", "toy-llava", "--param", "heads=5"], "do not divide"),
        (["--backbone", "toy-llava", "--data", "no/such/*.tar"], "--data"),
        (["--backbone", "toy-llava", "--resume"], "holds no training"),
        (["--backbone", "llava-1.5"], "image-caption pairs"),
        (["--backbone", "toy-llava", "--param", "num_validation=2000000"], "validate"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "scorer"
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(out)])
    assert isinstance(result.exception, DpbenchError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not out.exists()


def test_a_training_is_never_overwritten_or_mixed(trained: Path) -> None:
    with pytest.raises(ConfigError, match="there is a training already; go on with --resume"):
        train(small(), trained)
    with pytest.raises(ConfigError, match="begun with seed = 0, now it is 1"):
        train(small(seed=1), trained, resume=True)


def test_training_needs_no_lmms_eval(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['lmms_eval'] = None\n"
        "from pathlib import Path; from dpbench.diffprune.recipe import make_recipe\n"
        "from dpbench.diffprune.train import train\n"
        f"train(make_recipe('toy-llava', {{**{SMALL!r}, 'steps': 1}}), Path({str(tmp_path / 'out')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
