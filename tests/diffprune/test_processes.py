"""Several processes train together: they count and list broken images together, and one of them speaks."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from small_training import log_rows, small_command
from training_data import NO_IMAGE, encoded, write_jsonl

from dpbench.cli import commands
from dpbench.diffprune import broken, processes
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import split, step_indices
from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.machine.stopping import Stopped

MAIN, OTHER = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


def test_broken_images_of_all_processes_are_counted_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Broken(4, {"b.png: bad": 2, "c.png: bad": 1})
    monkeypatch.setattr(broken, "gather_object", lambda own: pickle.loads(pickle.dumps([*own, elsewhere])))
    own, total = Broken(5, {"a.png: bad": 1, "c.png: bad": 1}), Broken(1, {"a.png: bad": 1})
    own.share(total)
    assert total == Broken(10, {"a.png: bad": 2, "c.png: bad": 2, "b.png: bad": 2})
    assert own == Broken()


def test_the_main_process_shows_messages_and_the_others_none() -> None:
    stream = io.StringIO()
    console = Console(file=stream)
    processes.console_of(OTHER, console).print("out of memory")  # type: ignore[arg-type]
    assert stream.getvalue() == ""
    processes.console_of(MAIN, console).print("out of memory")  # type: ignore[arg-type]
    assert stream.getvalue() == "out of memory\n"


@pytest.mark.parametrize("error", [ConfigError("bad data"), MissingError("no weights")])
def test_an_error_of_all_processes_is_said_once(
    error: DpbenchError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(accelerator: Any) -> Callable[[], None]:
        def run() -> None:
            with processes.one_voice(accelerator):
                raise error

        return run

    for accelerator, said in ((MAIN, f"{type(error).__name__}: {error}\n"), (OTHER, "")):
        monkeypatch.setattr(commands, "app", command(accelerator))
        with pytest.raises(SystemExit) as done:
            commands.main()
        assert (done.value.code, capsys.readouterr().err) == (2, said)


@pytest.mark.parametrize(("num", "parents"), [(1, []), (2, [os.getppid()])])
def test_of_several_processes_each_ends_with_its_launcher_and_one_alone_ends_with_nobody(
    num: int, parents: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[int] = []
    monkeypatch.setattr("dpbench.diffprune.interruption.end_with", followed.append)
    processes.end_with_launcher(SimpleNamespace(num_processes=num))  # type: ignore[arg-type]
    assert followed == parents


def test_an_error_of_one_process_is_said_by_it() -> None:
    """Memory may run out in one process only; the others do not know."""
    with pytest.raises(DpbenchError, match="memory"), processes.one_voice(OTHER):  # type: ignore[arg-type]
        raise DpbenchError("the GPU's memory does not hold one image")


@pytest.mark.parametrize("is_told", [True, False])
def test_how_to_go_on_is_said_once(
    is_told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise Stopped(130, ("--resume",), is_told=is_told)

    monkeypatch.setattr(commands, "app", stop)
    with pytest.raises(SystemExit):
        commands.main()
    assert ("--resume" in capsys.readouterr().err) == is_told


def launch(num: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Train in some processes on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num)]
    command += ["-m", "dpbench", *arguments, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_validate_as_one_and_list_the_broken_image_of_the_second(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(130):
        (data / f"{i}.png").write_bytes(encoded(i))
    write_jsonl(data / "a.jsonl", [{"image": f"{i}.png", "caption": "so " * (i % 4) + "grey"} for i in range(130)])
    training = split(130, fraction=1, num_validation=11, seed=0).training
    second = step_indices(training, seed=0, step=0, batch_size=100)[1]  # the places of a step are dealt in turn
    (data / f"{second}.png").write_bytes(NO_IMAGE)
    changes = {"num_validation": 11, "steps": 1, "batch_size": 100, "micro_batch": 4}
    for num in (1, 2):
        done = launch(num, [*small_command(tmp_path / str(num), **changes), "--data", str(data)])
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("try it with") == 1
        (line,) = (tmp_path / str(num) / "broken.jsonl").read_text().splitlines()
        assert json.loads(line)["broken"].startswith(str(data / f"{second}.png"))
    (one, *_), (two, *_) = log_rows(tmp_path / "1"), log_rows(tmp_path / "2")
    assert one == pytest.approx(two, abs=2e-6)


@pytest.mark.slow
def test_two_processes_refuse_data_with_one_sentence(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"image": "absent.png", "caption": "a"}] * 9)
    done = launch(2, [*small_command(tmp_path / "out"), "--data", str(tmp_path)])
    assert done.returncode != 0
    assert done.stderr.count("none of the 2 held-out images can be read") == 1
    assert not (tmp_path / "out").exists()
