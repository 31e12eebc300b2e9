"""Kill runs and trainings at random moments and resume them: nothing is lost, nothing is done twice.

Each test sends SIGKILL DPBENCH_CHAOS_KILLS times (default 4), at moments drawn from DPBENCH_CHAOS_SEED (default 0)
between the start of Python and the last result. A command that ends before all kills are spent is compared with the
undisturbed one, and a new one is started.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpbench.diffprune import checkpoint
from dpbench.diffprune.logbook import LOG
from dpbench.diffprune.resume import STATE
from dpbench.storage import record
from dpbench.storage.record import Record

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("DPBENCH_CHAOS_KILLS", "4"))
SEED = int(os.environ.get("DPBENCH_CHAOS_SEED", "0"))
BATCH_SIZE = 16
MANIFEST = f"""name: grid
backbone: toy-llava
methods: [none, grid, fastv]
budgets: {{keep: [16]}}
tasks: [gqa, mme, pope]
protocol: {{limit: 40, batch_size: {BATCH_SIZE}}}
"""
SPREAD = 2
"""How far a process may get before it is killed, in even shares of the work; with 1 the kills rarely reach its end."""
TRAINING = {"dtype": "float32", "steps": 24, "batch_size": 4, "num_validation": 4, "validate_every": 4, "hidden": 16}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""With one thread sums are added in one order, so that results can be compared bit for bit."""

BATCHES = "CHAOS_BATCHES"
"""Environment variable that names the file to which processes write null when they start, then each batch's keys."""
RUN = f"""
import json, os
from dpbench.cli import commands
from dpbench.engine import answers
answer_samples = answers.answer_samples
def write(keys):
    with open(os.environ["{BATCHES}"], "a") as file:
        print(json.dumps(keys), file=file)
def answer_and_write(backbone, method, cell, samples, *rest):
    write([[cell.id, sample.request.doc_id, sample.request.prompt_hash] for sample in samples])
    return answer_samples(backbone, method, cell, samples, *rest)
answers.answer_samples = answer_and_write
write(None)
commands.main()
"""

Key = tuple[str, int, str]
"""Cell, number of the sample and hash of its prompt."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command that writes to a folder, and resumes there after a kill.

    Attributes:
        start: starts or resumes it in a folder.
        has_result: returns True once the first result is in the folder.
    """

    start: Callable[[Path], subprocess.Popen[bytes]]
    has_result: Callable[[Path], bool]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that an undisturbed process takes to its first result, and to its end."""

    first: float
    end: float

    def draw(self, dice: random.Random) -> float:
        """Return when to kill the next process: while it loads, or while it works."""
        return dice.uniform(0, self.first + SPREAD * (self.end - self.first) / KILLS)


def start_process(command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log_of(folder).open("wb") as log:
        return subprocess.Popen(command, env=os.environ | ONE_THREAD | environment, stdout=log, stderr=log)


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def run_undisturbed(job: Job, folder: Path) -> Times:
    began, first = time.monotonic(), None
    with job.start(folder) as process:
        while process.poll() is None:
            if first is None and job.has_result(folder):
                first = time.monotonic() - began
            time.sleep(0.02)
    assert process.returncode == 0, log_of(folder).read_text()
    end = time.monotonic() - began
    return Times(end if first is None else first, end)


def kill_and_resume(job: Job, root: Path) -> tuple[Path, list[Path]]:
    """Return the folder of the undisturbed command, and those of the killed ones, which have all ended."""
    times, dice = run_undisturbed(job, root / "whole"), random.Random(SEED)
    folders, spent = [root / "killed-0"], 0
    while True:
        with job.start(folders[-1]) as process:
            try:
                process.wait(times.draw(dice) if spent < KILLS else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            spent += 1
            continue
        assert process.returncode == 0, log_of(folders[-1]).read_text()
        if spent == KILLS:
            return root / "whole", folders
        folders.append(root / f"killed-{len(folders)}")


def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    manifest = tmp_path / "grid.yaml"
    manifest.write_text(MANIFEST)

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, "run", str(manifest), "--out", str(folder)]
        return start_process(command, folder, **{BATCHES: str(batches_of(folder))})

    whole, killed = kill_and_resume(Job(start, lambda folder: any(folder.glob("*/samples/*.jsonl"))), tmp_path)
    assert len(read_answers(whole)) == len(read_journals(whole)) > 0
    for folder in killed:
        assert Counter(key for key, _ in read_journals(folder)) == Counter(read_answers(whole).keys())
        assert read_answers(folder) == read_answers(whole)
        assert read_records(folder) == read_records(whole)
        assert max(count_repeats(batches_of(folder))) <= BATCH_SIZE, "a kill costs at most the batch in work"


def batches_of(folder: Path) -> Path:
    return folder.with_suffix(".batches")


def read_journals(out: Path) -> list[tuple[Key, dict[str, Any]]]:
    """Return every line of every journal, without its time and without whether its image had been encoded."""
    varying = ("ms", "cache_hits", "encoded")
    return [
        ((path.stem, row["doc_id"], row["prompt_hash"]), {name: row[name] for name in row if name not in varying})
        for path in sorted(out.glob("*/samples/*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    ]


def read_answers(out: Path) -> dict[Key, dict[str, Any]]:
    return dict(read_journals(out))


def read_records(out: Path) -> list[str]:
    """Return a run's records without times, sorted; a doubled record is there twice."""
    (path,) = out.glob("*/records.jsonl")
    return sorted(
        str((r.cell_id, r.score, r.metrics, r.num_samples, r.num_failed, r.visual_tokens_per_layer))
        for r in record.read(path, Record)
    )


def count_repeats(batches: Path) -> Iterator[int]:
    """Yield for each process how many samples it answered that an earlier process had begun to answer."""
    seen: set[tuple[Any, ...]] = set()
    repeats = 0
    for keys in map(json.loads, batches.read_text(encoding="utf-8").splitlines()):
        if keys is None:  # another process starts
            yield repeats
            repeats = 0
            continue
        repeats += sum(tuple(key) in seen for key in keys)
        seen.update(map(tuple, keys))
    yield repeats


def test_a_training_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dpbench", "train", "--backbone", "toy-llava", "--keep", "16,32"]
        command += [word for name, value in TRAINING.items() for word in ("--param", f"{name}={value}")]
        command += ["--param", "save_minutes=0", "--out", str(folder)]
        return start_process([*command, *(["--resume"] if (folder / STATE).is_file() else [])], folder)

    whole, killed = kill_and_resume(Job(start, lambda folder: (folder / checkpoint.CARD).is_file()), tmp_path)
    for folder in killed:
        assert read_log(folder) == read_log(whole), "every step is logged once"
        assert (folder / checkpoint.WEIGHTS).read_bytes() == (whole / checkpoint.WEIGHTS).read_bytes()
        state, expected = load_file(folder / STATE), load_file(whole / STATE)
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the numbers a training logged, without its speed."""
    rows = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]
