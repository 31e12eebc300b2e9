"""Signals, full and read-only disks, samples that hang: what was done is kept, and a sentence says what goes on."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from dpbench.evaluation.sample_timeout import Patience
from places import PACKAGE, TOY_DATA
from rich.console import Console

from dpbench.cli import commands, messages
from dpbench.engine import pruned_prompt
from dpbench.errors import ConfigError, StorageError
from dpbench.evaluation import plan, runner
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import files, record
from dpbench.storage.journal import Answer, Journal
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_does_so_at_once_and_says_what_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    run = [*CELL, "--limit", "120", "--batch-size", "1", "--out", str(tmp_path)]
    with dpbench(*run) as running:
        while not answers(tmp_path):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        asked = len(answers(tmp_path))
        _, said = running.communicate()
    assert running.returncode == code
    assert "Traceback" not in said
    before = answers(tmp_path)
    assert len(before) <= asked + 1, "no more than the question in work is answered"
    assert len(before) < 120
    sentence, _, command = said.strip().splitlines()[-1].partition("go on with: ")
    assert sentence == "stopped; what was finished is kept, "
    words = shlex.split(command)
    assert words == ["dpbench", *run]
    assert goes_on(monkeypatch, *words[1:]) == 0
    after = answers(tmp_path)
    assert after[: len(before)] == before
    assert len({each["doc_id"] for each in after}) == len(after) == 120


def test_the_command_that_goes_on_is_quoted() -> None:
    assert messages.stopped(["run", "my grid.yaml"]).endswith("go on with: dpbench run 'my grid.yaml'")


def limited(size: int) -> Any:
    """Return what gives a process a disk on which no file may be larger than so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*CELL, "--limit", "24", "--out", str(tmp_path))
    with dpbench(*command, preexec_fn=limited(8000)) as running:
        _, said = running.communicate()
    assert running.returncode == 1
    assert "Traceback" not in said
    assert re.search(r"StorageError: \S+\.jsonl: cannot be written \(File too large\); finished work is kept", said)
    (path,) = (tmp_path / NAME / "samples").glob("*.jsonl")
    before = path.read_bytes()
    assert before.endswith(b"\n")
    assert 0 < len(answers(tmp_path)) < 24
    assert goes_on(monkeypatch, *command) == 0
    assert path.read_bytes().startswith(before)
    assert len({each["doc_id"] for each in answers(tmp_path)}) == len(answers(tmp_path)) == 24
    assert [each.num_failed for each in record.read(tmp_path / NAME / "records.jsonl", Record)] == [0]


@pytest.fixture
def wanted(tiny_folder: Path) -> Manifest:
    given = {"name": "trial", "backbone": {"name": "toy-llava", "weights": str(tiny_folder)}, "methods": ["grid"]}
    protocol = {"budgets": {"keep": [5]}, "tasks": ["pope"], "protocol": {"limit": 8, "batch_size": 4}}
    return make_manifest(given | protocol, source="test")


def run(wanted: Manifest, out: Path, **options: Any) -> plan.Outcome:
    return runner.run(wanted, out, TOY_DATA, device="cpu", console=QUIET, **options)


@pytest.mark.parametrize("what", ["below a file", "read-only", "full"])
def test_a_folder_that_takes_nothing_is_refused_before_the_backbone_loads(
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
    assert [each.num_samples for each in run(wanted, tmp_path).added] == [8]
    assert path.read_bytes() == before


def test_a_sample_that_hangs_is_given_up_alone(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls, stuck = pruned_prompt.splice, 0, ""

    def splice(backbone: Any, method: Any, prompt: Any, *rest: Any) -> Any:
        nonlocal calls, stuck
        calls += 1
        stuck = stuck or (prompt.question if calls == 3 else "")
        until = time.monotonic() + 20
        while prompt.question == stuck and time.monotonic() < until:
            try:
                time.sleep(0.01)
            except Exception:
                continue
        return real(backbone, method, prompt, *rest)

    monkeypatch.setattr(pruning, "splice", splice)
    (outcome,) = run(wanted, tmp_path, sample_timeout=0.5).added
    failures = [each.failure for each in journal(tmp_path).values()]
    assert failures.count("timed out after 0.5 s") == outcome.num_failed >= 1
    assert failures.count(None) == 8 - outcome.num_failed >= 4
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def journal(out: Path) -> dict[Any, Answer]:
    (path,) = (out / "trial" / "samples").iterdir()
    return Journal(path).answers


def test_an_image_that_hangs_is_given_up_alone(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpbench.tasks.lmms_eval_adapter import BuiltTask

    real, seen = BuiltTask.images, []

    def images(self: BuiltTask, request: Any) -> Any:
        seen.append(self.image_group(request))
        while seen[0] == seen[-1]:
            time.sleep(0.01)
        return real(self, request)

    monkeypatch.setattr(BuiltTask, "images", images)
    run(wanted, tmp_path, sample_timeout=0.3)
    for each in journal(tmp_path).values():
        assert each.failure == ("timed out after 0.3 s" if each.image_group == seen[0] else None)


def test_what_was_given_up_leaves_no_hook_and_no_alarm() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: None)

    def work(part: Sequence[int]) -> list[int]:
        model[0].register_forward_pre_hook(lambda *_: None)
        if 1 in part:
            time.sleep(60)
        return [10 * each for each in part]

    before = signal.getsignal(signal.SIGALRM)
    assert Patience(0.05, model).map([0, 1, 2], work) == [0, None, 20]
    assert len(model[0]._forward_hooks) == 1
    assert len(model[0]._forward_pre_hooks) == 2, "those of the work that ended are its own"
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0, 0))


def test_without_a_timeout_nothing_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "setitimer", None)
    assert Patience(None, torch.nn.Identity()).map([1], lambda part: part) == [1]


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
