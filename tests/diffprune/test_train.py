"""Training: what it leaves, what it refuses, and that a killed one resumes to the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import log_rows, progress_of, result_of, small_command, train_small
from typer.testing import CliRunner

from dpbench.cli.commands import app
from dpbench.diffprune import checkpoint
from dpbench.diffprune.interruption import Interruption
from dpbench.diffprune.logbook import Logbook
from dpbench.diffprune.train import Training
from dpbench.errors import ConfigError, DpbenchError
from dpbench.storage import locks


def test_a_training_leaves_a_scorer_its_card_and_its_numbers(trained: Path) -> None:
    card = checkpoint.read_card(trained, "toy-llava")
    assert (card.variant, card.keep, card.seed, card.data) == ("diffprune", "16,32", 0, "toy")
    assert card.losses.keys() == {"full", "hard", "hard@16", "hard@32"}
    assert checkpoint.load(trained, "toy-llava", 128).size.hidden == 16
    steps = [row for row in log_rows(trained) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all({"tau", "lr", "mass_on_top_k"} <= row.keys() for row in steps)
    assert (trained / "log.jsonl").read_text().count("images_per_s") == 3
    assert [row["step"] for row in log_rows(trained) if "hard" in row] == [0, 2, 3]
    assert list((trained / "tensorboard").glob("events*"))
    assert not list(trained.glob("*.part"))


def test_the_scorer_on_disk_is_the_best_as_deployed(trained: Path) -> None:
    validations = {row["step"]: row["hard"] for row in log_rows(trained) if "hard" in row}
    card = checkpoint.read_card(trained, "toy-llava")
    assert card.step == min(validations, key=lambda step: validations[step])
    assert card.losses["hard"] == pytest.approx(min(validations.values()), abs=1e-5)


PAUSED_TRAINING = """
import signal, sys
sys.modules["lmms_eval"] = None  # importing it raises ImportError: training must not need it
from dpbench.cli import commands
from dpbench.diffprune import resume

write = resume.write

def write_then_pause(folder, modules, optimizer, progress, recipe):
    write(folder, modules, optimizer, progress, recipe)
    if progress.step == 1:
        print("saved", flush=True)
        signal.pause()

resume.write = write_then_pause
commands.main()
"""


def test_a_killed_training_resumes_to_the_same_bits_and_needs_no_lmms_eval(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", PAUSED_TRAINING, *small_command(out, save_minutes=0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saved\n"
        process.kill()
    assert progress_of(out)["step"] == 1
    train_small(out, resume=True, save_minutes=0)
    assert result_of(out) == result_of(trained)


def test_a_training_killed_with_its_first_scorer_just_written_resumes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise MemoryError("killed")

    monkeypatch.setattr(Logbook, "log_validation", kill)
    with pytest.raises(MemoryError):
        train_small(tmp_path / "killed")
    assert (tmp_path / "killed" / "scorer.safetensors").is_file()
    monkeypatch.undo()
    train_small(tmp_path / "killed", resume=True)
    assert result_of(tmp_path / "killed") == result_of(trained)


def test_a_finished_training_has_nothing_to_resume(trained: Path) -> None:
    before = result_of(trained)
    ended = train_small(trained, resume=True)
    assert (ended.step, ended.is_main_process) == (3, True)
    assert result_of(trained) == before


def test_the_backbone_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged = []
    real = Training.run

    def run(self: Training, interruption: Interruption) -> None:
        model = self.setup.objective.backbone.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        real(self, interruption)
        unchanged.append(all(torch.equal(value, model.state_dict()[name]) for name, value in before.items()))

    monkeypatch.setattr(Training, "run", run)
    train_small(tmp_path / "one", steps=1)
    assert unchanged == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "toy-lava"], "did you mean 'toy-llava'"),
        (["--backbone", "toy-llava", "--keep", "many"], "'many' is not a budget"),
        (["--backbone", "toy-llava", "--keep", "145"], "145 is more than the 144 visual tokens of toy-llava"),
        (["--backbone", "toy-llava", "--param", "tua=1"], "did you mean 'tau'"),
        (["--backbone", "toy-llava", "--param", "lr=-1"], "greater than 0, got -1"),
        (["--backbone", "toy-llava", "--param", "tau=[1, 0]"], "above 0"),
        (["--backbone", "toy-llava", "--param", "heads=5"], "hidden must be a multiple of heads"),
        (["--backbone", "toy-llava", "--data", "no/such/*.tar"], "--data"),
        (["--backbone", "toy-llava", "--resume"], "holds no training"),
        (["--backbone", "llava-1.5"], "image-caption pairs"),
        (["--backbone", "toy-llava", "--param", "num_validation=2000000"], "validate"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "scorer"
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(out)])
    assert isinstance(result.exception, DpbenchError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not out.exists()


def test_a_training_is_never_overwritten_or_mixed(trained: Path) -> None:
    with pytest.raises(ConfigError, match="there is a training already; go on with --resume"):
        train_small(trained)
    with pytest.raises(ConfigError, match="begun with seed = 0, now it is 1"):
        train_small(trained, resume=True, seed=1)


def test_a_scorer_without_its_training_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / checkpoint.CARD).touch()
    with pytest.raises(ConfigError, match="there is a scorer already"):
        train_small(tmp_path)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = locks.take(tmp_path / "train.lock", seconds=1)
    try:
        with pytest.raises(ConfigError, match="another dpbench is running there"):
            train_small(tmp_path)
    finally:
        lock.release()
