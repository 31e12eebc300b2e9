"""Kill a run, or a training, at random times, start it again each time, and compare with one that nobody disturbed.

    python benchmarks/chaos.py --kills 50 --seed 0            # the quickstart grid
    python benchmarks/chaos.py --kills 50 --limit 8           # fewer samples a task
    python benchmarks/chaos.py --kills 20 --train             # dpbench train

Kills are SIGKILL, between the start of Python and the last record. Ends with one line; exit code 1 if anything differs.
A grid that ends before all kills are spent is compared, and a new one begun.
"""

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dpbench.diffprune import checkpoint
from dpbench.diffprune.logbook import LOG
from dpbench.diffprune.resume import STATE
from dpbench.storage import record
from dpbench.storage.record import Record

ASKED = "CHAOS_ASKED"
"""Names the file in which runs under test write that they begin, and what they begin to answer."""
RUN = f"""
import json, os
from dpbench import answering, cli
real = answering._say
def note(keys):
    with open(os.environ["{ASKED}"], "a") as asked:
        print(json.dumps(keys), file=asked)
def say(backbone, running, built, samples, *rest):
    note([[running.cell.id, each.request.doc_id, each.request.prompt_hash] for each in samples])
    return real(backbone, running, built, samples, *rest)
answering._say = say
note(None)
cli.main()
"""
TRAINING = {"dtype": "float32", "steps": 24, "batch_size": 4, "num_validation": 4, "validate_every": 4, "hidden": 16}
LAST = "last.log"
"""What the latest process said, beside its folder."""
SPREAD = 8
"""How far into its work a process may get before it is killed, over an even share of the work."""

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds an undisturbed process takes: until its first result, and in all."""

    start: float
    whole: float

    def drawn(self, kills: int, dice: random.Random) -> float:
        """Return when to kill the next process: while it loads, or in its work."""
        return dice.uniform(0, self.start + SPREAD * (self.whole - self.start) / kills)


@dataclass(frozen=True, slots=True)
class Compared:
    """How a disturbed folder differs from the whole one: nothing, where every number is 0 and `same` holds."""

    lost: int
    duplicated: int
    same: bool


def main() -> None:
    """Kill, compare, print."""
    options = parsed()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            line, fine = (kill_trainings if options.train else kill_runs)(Path(folder), options, dice)
        except RuntimeError:
            console.print((Path(folder) / LAST).read_text(encoding="utf-8"), markup=False)
            raise
    print(line)
    sys.exit(0 if fine else 1)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="Samples a task; the manifest's own by default.")
    parser.add_argument("--manifest", default="quickstart")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--train", action="store_true")
    return parser.parse_args()


def kill_runs(folder: Path, options: argparse.Namespace, dice: random.Random) -> tuple[str, bool]:
    """Return what killing `dpbench run` came to, in a line, and whether nothing is wrong."""

    def start(name: str) -> subprocess.Popen[bytes]:
        command = ["run", options.manifest, "--out", str(folder / name), "--batch-size", str(options.batch_size)]
        command += ["--limit", str(options.limit)] if options.limit else []
        return process([sys.executable, "-c", RUN, *command], {ASKED: str(folder / f"{name}.asked")}, folder / LAST)

    def started(name: str) -> bool:
        return any((folder / name).glob("*/samples/*.jsonl"))

    def compare(name: str) -> Compared:
        return compared_runs(next((folder / "whole").iterdir()), next((folder / name).iterdir()))

    names, found = disturb(start, started, compare, options.kills, dice)
    again, worst, working = answered_again(folder, names)
    lost, duplicated = (sum(getattr(each, what) for each in found) for what in ("lost", "duplicated"))
    same = all(each.same for each in found)
    console.print(f"{working} kills came after the process had begun to answer; {len(names)} grids were begun")
    console.print(f"{again} answers were computed twice, at most {worst} after a kill; a batch is {options.batch_size}")
    line = f"{options.kills} kills, {lost} lost, {duplicated} duplicated, records {'identical' if same else 'DIFFER'}"
    return line, same and not lost and not duplicated and worst <= options.batch_size


def kill_trainings(folder: Path, options: argparse.Namespace, dice: random.Random) -> tuple[str, bool]:
    """Return what killing `dpbench train` came to, in a line, and whether nothing is wrong."""
    settings = [word for name, value in TRAINING.items() for word in ("--param", f"{name}={value}")]

    def start(name: str) -> subprocess.Popen[bytes]:
        out = folder / name
        command = [sys.executable, "-m", "dpbench", "train", "--backbone", "toy-llava", "--keep", "16,32"]
        command += ["--out", str(out), *settings, "--param", "save_minutes=0"]
        return process([*command, *(["--resume"] if (out / STATE).is_file() else [])], {}, folder / LAST)

    def started(name: str) -> bool:
        return (folder / name / checkpoint.CARD).is_file()

    def compare(name: str) -> Compared:
        return compared_trainings(folder / "whole", folder / name)

    _, found = disturb(start, started, compare, options.kills, dice)
    lost, duplicated = (sum(getattr(each, what) for each in found) for what in ("lost", "duplicated"))
    same = all(each.same for each in found)
    line = f"{options.kills} kills, {lost} lost, {duplicated} duplicated, weights {'identical' if same else 'DIFFER'}"
    return line, same and not lost and not duplicated


def process(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process on one thread, so that sums are added in one order; what it says goes to a file."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("wb") as said:
        return subprocess.Popen(command, env=os.environ | threads | environment, stdout=said, stderr=said)


def disturb(
    start: Callable[[str], subprocess.Popen[bytes]],
    started: Callable[[str], bool],
    compare: Callable[[str], Compared],
    kills: int,
    dice: random.Random,
) -> tuple[list[str], list[Compared]]:
    """Run undisturbed as "whole", then kill and start again until the kills are spent and the last one has ended.

    Args:
        start: begins, or goes on, in a folder of a name.
        started: tells whether the first result is there.
        compare: a folder that has ended with the whole one.
        kills: how many.
        dice: when.
    """
    times = undisturbed(start, started)
    console.print(f"undisturbed: first result after {times.start:.1f} s, {times.whole:.1f} s in all")
    names, found, spent = ["killed-0"], [], 0
    while True:
        seconds = times.drawn(kills, dice) if spent < kills else None
        with start(names[-1]) as running:
            if killed(running, seconds):
                spent += 1
                console.print(f"kill {spent} after {seconds:.1f} s")
                continue
        found.append(compare(names[-1]))
        if spent == kills:
            return names, found
        names.append(f"killed-{len(names)}")


def undisturbed(start: Callable[[str], subprocess.Popen[bytes]], started: Callable[[str], bool]) -> Times:
    """Run to the end, and return when the first result was there and when the last."""
    began, first = time.monotonic(), None
    with start("whole") as running:
        while running.poll() is None:
            if first is None and started("whole"):
                first = time.monotonic() - began
            time.sleep(0.02)
        check(running)
    whole = time.monotonic() - began
    return Times(whole if first is None else first, whole)


def killed(running: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Kill a process after so many seconds, or wait for it; tell whether it was killed before it ended."""
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGKILL)
        return running.wait() == -signal.SIGKILL
    check(running)
    return False


def check(running: subprocess.Popen[bytes]) -> None:
    """Raise where a process failed by itself."""
    if running.returncode:
        raise RuntimeError(f"a process ended with exit code {running.returncode} though it was not killed")


def compared_runs(whole: Path, other: Path) -> Compared:
    """Compare two run folders: records but for times, and every line of every journal but for times and cache."""
    mine, theirs = Counter(answer_keys(whole)), Counter(answer_keys(other))
    twice = sum(count - 1 for count in theirs.values()) + len(records(other)) - len(set(map(str, records(other))))
    same = sorted(records(whole), key=str) == sorted(records(other), key=str) and answers(whole) == answers(other)
    return Compared(len(mine.keys() - theirs.keys()), twice, same)


def lines(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every line of every journal, with the cell it is of."""
    for path in sorted((folder / "samples").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield path.stem, json.loads(line)


def answer_keys(folder: Path) -> list[tuple[Any, ...]]:
    """Return which samples the journals answer, repeated where they do so twice."""
    return [(cell, row["doc_id"], row["prompt_hash"]) for cell, row in lines(folder)]


def answers(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return every answer without what a kill may change: its time, and whether its image was known."""
    free = ("ms", "cache_hits", "encoded")
    return {
        (cell, row["doc_id"], row["prompt_hash"]): {name: value for name, value in row.items() if name not in free}
        for cell, row in lines(folder)
    }


def records(folder: Path) -> list[tuple[Any, ...]]:
    """Return what a run's records say, without times."""
    return [
        (each.cell_id, each.score, each.metrics, each.num_samples, each.num_failed, each.visual_tokens_per_layer)
        for each in record.read(folder / "records.jsonl", Record)
    ]


def answered_again(folder: Path, names: Sequence[str]) -> tuple[int, int, int]:
    """Return how many answers were computed again, the most that one kill cost, and the kills of answering processes.

    What a process answers again, the kill before it cost.
    """
    again, working = [], -len(names)  # the last process of each grid is not killed
    for name in names:
        seen: set[tuple[Any, ...]] = set()
        for batches in processes(folder / f"{name}.asked"):
            again.append(sum(key in seen for batch in batches for key in batch))
            seen.update(*batches)
            working += bool(batches)
    return sum(again), max(again), working


def processes(asked: Path) -> list[list[list[tuple[Any, ...]]]]:
    """Return, process by process, the batches that each began to answer."""
    found: list[list[list[tuple[Any, ...]]]] = []
    for line in asked.read_text(encoding="utf-8").splitlines():
        keys = json.loads(line)
        if keys is None:
            found.append([])
        else:
            found[-1].append([tuple(key) for key in keys])
    return found


def compared_trainings(whole: Path, other: Path) -> Compared:
    """Compare two trainings: their log step by step, the state they ended in and the scorer that they kept."""
    mine, theirs = logged(whole), logged(other)
    same = mine == theirs and all(
        (whole / name).read_bytes() == (other / name).read_bytes() for name in (checkpoint.WEIGHTS,)
    )
    steps, known = Counter(str(row) for row in theirs), {str(row) for row in mine}
    return Compared(
        len(known - set(steps)), sum(count - 1 for count in steps.values()), same and same_state(whole, other)
    )


def logged(folder: Path) -> list[dict[str, float]]:
    """Return a training's numbers without its speed."""
    rows = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def same_state(whole: Path, other: Path) -> bool:
    """Tell whether weights and optimiser are the same, bit for bit."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = load_file(whole / STATE), load_file(other / STATE)
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


if __name__ == "__main__":
    main()
