"""Signals, full and read-only disks: finished work is kept, and a sentence says how to go on."""

import errno
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from places import TOY_DATA
from rich.console import Console

from dpbench.cli import commands
from dpbench.errors import ConfigError, StorageError
from dpbench.evaluation import outcome, runner
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import files, record
from dpbench.storage.record import Record

QUIET = Console(quiet=True)
CELL = ("run", "--method", "grid", "--keep", "16", "--backbone", "toy-llava", "--tasks", "pope", "--batch-size", "4")
NAME = "toy-llava-grid-16"


def dpbench(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dpbench", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def goes_on(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run a command in this process, which has everything loaded, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["dpbench", *arguments])
    with pytest.raises(SystemExit) as done:
        commands.main()
    return done.value.code or 0


def answers(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in (folder / NAME / "samples").glob("*.jsonl")
        for line in path.read_text().split("\n")[:-1]
    ]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],  # Python's own, the same path
)
def test_a_stopped_run_answers_no_further_question_and_prints_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    run = [*CELL, "--limit", "120", "--batch-size", "1", "--out", str(tmp_path)]
    with dpbench(*run) as running:
        while not answers(tmp_path):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        asked = len(answers(tmp_path))
        _, output = running.communicate()
    assert running.returncode == code
    assert "Traceback" not in output
    before = answers(tmp_path)
    assert len(before) <= asked + 1, "no more than the question in work is answered"
    assert len(before) < 120
    sentence, _, command = output.strip().splitlines()[-1].partition("go on with: ")
    assert sentence == "stopped; what was finished is kept, "
    words = shlex.split(command)
    assert words == ["dpbench", *run]
    assert goes_on(monkeypatch, *words[1:]) == 0
    after = answers(tmp_path)
    assert after[: len(before)] == before
    assert len({answer["doc_id"] for answer in after}) == len(after) == 120


def limited(size: int) -> Any:
    """Return what gives a process a disk on which no file may be larger than so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow  # the run in one process: the tests of disks below, and tests/storage
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*CELL, "--limit", "24", "--out", str(tmp_path))
    with dpbench(*command, preexec_fn=limited(8000)) as running:
        _, output = running.communicate()
    assert running.returncode == 1
    assert "Traceback" not in output
    assert re.search(r"StorageError: \S+\.jsonl: cannot be written \(File too large\); finished work is kept", output)
    (path,) = (tmp_path / NAME / "samples").glob("*.jsonl")
    before = path.read_bytes()
    assert before.endswith(b"\n")
    assert 0 < len(answers(tmp_path)) < 24
    assert goes_on(monkeypatch, *command) == 0
    assert path.read_bytes().startswith(before)
    assert len({answer["doc_id"] for answer in answers(tmp_path)}) == len(answers(tmp_path)) == 24
    assert [finished.num_failed for finished in record.read(tmp_path / NAME / "records.jsonl", Record)] == [0]


@pytest.fixture
def wanted(tiny_folder: Path) -> Manifest:
    given = {"name": "trial", "backbone": {"name": "toy-llava", "weights": str(tiny_folder)}, "methods": ["grid"]}
    protocol = {"budgets": {"keep": [5]}, "tasks": ["pope"], "protocol": {"limit": 8, "batch_size": 4}}
    return make_manifest(given | protocol, source="test")


def run(wanted: Manifest, out: Path, **options: Any) -> outcome.Outcome:
    return runner.run(wanted, out, TOY_DATA, device="cpu", console=QUIET, **options)


@pytest.mark.parametrize("what", ["below a file", "read-only", "full"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_backbone_loads(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the backbone was loaded")

    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runner, "load_backbone", loaded)
    code = {"below a file": errno.ENOTDIR, "read-only": errno.EROFS, "full": errno.ENOSPC}[what]
    if what == "below a file":
        (tmp_path / "file").touch()
    else:
        monkeypatch.setattr(files, "TemporaryFile", refuse)
    before = list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=rf"--out: cannot write to .*trial \({os.strerror(code)}\)"):
        run(wanted, tmp_path / "file")
    assert list(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_while_a_record_is_written_loses_no_answer(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "append", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(wanted, tmp_path)
    monkeypatch.undo()
    (path,) = (tmp_path / "trial" / "samples").iterdir()
    before = path.read_bytes()
    assert [finished.num_samples for finished in run(wanted, tmp_path).added] == [8]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "given", [("--method", "fastv", "--keep", "1"), ("--method", "fastv", "--keep", "16", "--param", "layer=99")]
)
def test_what_is_refused_after_loading_leaves_nothing(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        goes_on(monkeypatch, "dpbench", "run", "--backbone", "toy-llava", "--tasks", "pope", "--limit", "1", *given)
        == 2
    )
    assert not list(tmp_path.iterdir())
