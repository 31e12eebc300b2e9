"""Signals and full disks: a training saves after its step, or drops the step that takes too long, and resumes."""

import errno
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors import SafetensorError
from small_training import log_rows, progress_of, result_of, small_command, train_small

from dpbench.cli import messages
from dpbench.diffprune import checkpoint, interruption, step, validation
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import read_batches
from dpbench.diffprune.example import Example
from dpbench.diffprune.interruption import Interruption, LateError
from dpbench.diffprune.resume import Progress
from dpbench.diffprune.setup import Setup
from dpbench.diffprune.sources import ToySource
from dpbench.errors import DpbenchError, StorageError
from dpbench.machine.stopping import Stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_after_the_step_and_names_the_flag_that_resumes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    real, out = step.optimizer_step, tmp_path / "stopped"

    def optimizer_step(
        setup: Setup, progress: Progress, examples: list[Example], interruption: Interruption
    ) -> dict[str, float]:
        signal.raise_signal(number)
        return real(setup, progress, examples, interruption)

    monkeypatch.setattr(step, "optimizer_step", optimizer_step)
    monkeypatch.setattr(interruption, "GRACE_S", 3600)  # however slow the machine is
    with pytest.raises(Stopped) as stopped:
        train_small(out)
    monkeypatch.undo()
    assert (stopped.value.code, stopped.value.flags) == (code, ("--resume",))
    assert [row["step"] for row in log_rows(out) if "loss" in row] == [1]
    command = messages.format_stop(small_command(out), stopped.value.flags)
    assert command.endswith(" --resume")
    assert messages.format_stop([*small_command(out), "--resume"], stopped.value.flags).count("--resume") == 1
    train_small(out, resume=True)
    assert result_of(out) == result_of(trained)


def test_a_training_stopped_before_its_first_checkpoint_has_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpbench.diffprune.train.Training.save", interrupt)
    with pytest.raises(Stopped) as stopped:
        train_small(tmp_path / "early")
    assert (stopped.value.code, stopped.value.flags) == (130, ())
    assert not messages.format_stop(small_command(tmp_path), stopped.value.flags).endswith("--resume")


@pytest.mark.parametrize(("module", "name"), [(step, "accumulate_gradient"), (validation, "measure_losses")])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_work_that_does_not_end_in_its_grace_is_dropped_and_done_again_on_resume(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    number: signal.Signals,
    code: int,
) -> None:
    real, out = getattr(module, name), tmp_path / "stopped"

    def hang(setup: Setup, progress: Progress, *rest: Any) -> Any:
        if progress.step == 2:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGALRM)  # the grace is over
            raise AssertionError("the work went on")
        return real(setup, progress, *rest)

    monkeypatch.setattr(module, name, hang)
    with pytest.raises(Stopped) as stopped:
        train_small(out)
    assert stopped.value.code == code
    assert progress_of(out)["step"] == 2
    monkeypatch.undo()
    train_small(out, resume=True)
    assert result_of(out) == result_of(trained)


def test_the_first_signal_starts_the_grace_and_the_second_ends_the_process() -> None:
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with interruption.interruptible() as interrupted:
            assert not interrupted.is_requested
            signal.raise_signal(number)
            assert interrupted.is_requested
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= interruption.GRACE_S
            with pytest.raises(error):
                signal.raise_signal(number)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_handlers_are_restored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with interruption.interruptible():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_end_of_the_grace_waits_for_uninterrupted_blocks() -> None:
    interrupted, done = Interruption(), []

    def work() -> None:
        with interrupted.uninterrupted():
            interrupted.end_grace(signal.SIGALRM, None)
            with interrupted.uninterrupted():
                done.append("inner block")
            done.append("outer block")

    with pytest.raises(LateError):
        work()
    assert done == ["inner block", "outer block"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reader_process_survives_the_signal_that_stops_the_training(number: signal.Signals) -> None:
    batches = [np.array([index]) for index in range(12)]
    examples = read_batches(ToySource(0), batches, num_workers=1, broken=Broken())
    assert len(next(examples)) == 1
    (reader,) = multiprocessing.active_children()
    assert reader.pid is not None
    os.kill(reader.pid, number)
    assert [len(batch) for batch in examples] == [1] * 11


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_a_reader_that_is_killed_ends_the_training_in_one_sentence() -> None:
    """The system kills one when memory runs out; torch then raises its error in any line of the training."""

    def read() -> None:
        examples = read_batches(ToySource(0), [np.array([i]) for i in range(99)], num_workers=1, broken=Broken())
        for _ in examples:
            for reader in multiprocessing.active_children():
                reader.kill()

    sentence = r"a process that reads images ahead was ended \(DataLoader worker .*\), perhaps because memory ran out; "
    with pytest.raises(DpbenchError, match=sentence), interruption.explain_lost_reader():
        read()
    with pytest.raises(RuntimeError, match="of something else"), interruption.explain_lost_reader():
        raise RuntimeError("of something else")


KILLED_READING = """
import os, sys
from multiprocessing import active_children
import numpy as np
from PIL import Image
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import read_batches
from dpbench.diffprune.example import Example

class Large:
    def __len__(self): return 1000
    def __getitem__(self, index): return Example(Image.new("RGB", (800, 800)), "a")

examples = read_batches(Large(), [np.array([index]) for index in range(1000)], num_workers=3, broken=Broken())
next(examples)
print(*[reader.pid for reader in active_children()], flush=True)
sys.stdin.read()
"""


def are_gone(numbers: Iterable[int], seconds: float = 60) -> bool:
    """Wait until none of the processes runs; one that has ended may wait for ever to be collected by its parent."""
    end = time.monotonic() + seconds
    while running := [number for number in numbers if is_running(number)]:
        if time.monotonic() > end:
            for number in running:
                os.kill(number, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


LAUNCHER = """
import subprocess, sys
child = "import sys, os; from dpbench.diffprune import interruption; interruption.end_with(os.getppid()); "
child += "print(os.getpid(), flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", child], stdin=subprocess.PIPE)
"""


def test_a_training_ends_with_its_killed_launcher() -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        training = int(launcher.stdout.readline())
        assert is_running(training)
        launcher.kill()
        launcher.wait()
        assert are_gone([training])


@pytest.mark.parametrize("signalled", [False, True])
def test_readers_end_with_a_killed_training(signalled: bool) -> None:
    """They wait for the pipe, which is full: nobody reads it any more. The first SIGTERM must not keep them."""
    command = [sys.executable, "-c", KILLED_READING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        readers = [int(number) for number in training.stdout.readline().split()]
        assert len(readers) == 3
        assert all(map(is_running, readers))
        for reader in readers if signalled else ():
            os.kill(reader, signal.SIGTERM)
        training.kill()
    assert are_gone(readers)


@pytest.mark.slow
def test_a_killed_training_leaves_no_process(tmp_path: Path) -> None:
    arguments = small_command(tmp_path / "killed", steps=1000, validate_every=1000, num_workers=3)
    with subprocess.Popen([sys.executable, "-m", "dpbench", *arguments], stderr=subprocess.DEVNULL) as training:
        log = tmp_path / "killed" / "log.jsonl"
        while not log.is_file() or log.read_text().count('"loss"') < 2:
            assert training.poll() is None
            time.sleep(0.05)
        children = [child.pid for child in psutil.Process(training.pid).children(recursive=True)]
        training.kill()
    assert len(children) >= 3
    assert are_gone(children)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_training_stops_it_after_its_step(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "stopped"
    arguments = small_command(folder, steps=1000, validate_every=1000, num_workers=2)
    command = [sys.executable, "-m", "dpbench", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        log = folder / "log.jsonl"
        while not log.is_file() or log.read_text().count('"loss"') < 2:
            assert running.poll() is None
            time.sleep(0.05)
        os.killpg(running.pid, number)
        _, output = running.communicate()
    assert "Traceback" not in output
    assert running.returncode == code
    saved = re.search(r"stopped after step (\d+); --resume goes on from there", output)
    assert saved is not None
    assert progress_of(folder)["step"] == int(saved[1]) >= 2


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, succeeds = os.fsync, iter([True, True])

    def fsync(number: int) -> None:
        if not next(succeeds, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        train_small(tmp_path / "full")
    monkeypatch.undo()
    assert not list((tmp_path / "full").glob("*.part"))
    train_small(tmp_path / "full", resume=True)
    assert result_of(tmp_path / "full") == result_of(trained)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 20,000 bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_checkpoint_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"training\.safetensors.*: cannot be written \(File too large\)"):
        train_small(tmp_path / "full")


def test_a_scorer_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SafetensorError("I/O error: File too large")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(StorageError, match=r"scorer\.safetensors: cannot be written \(I/O error: File too large\)"):
        train_small(tmp_path / "full")
