"""Several processes share a run: one of them answers each sample, and merged they give what one process gives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from places import TOY_DATA
from rich.console import Console
from typer.testing import CliRunner

from dpbench.cli.commands import app
from dpbench.errors import ConfigError
from dpbench.evaluation import merging, outcome, plan, runner, sharding
from dpbench.evaluation.sharding import WHOLE, Shard
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record

QUIET = Console(quiet=True)
TIMES = ("ms", "shard", "cache_hits", "encoded")


@pytest.fixture
def wanted(tiny_folder: Path) -> Manifest:
    return make_manifest(
        {
            "name": "trial",
            "backbone": {"name": "toy-llava", "weights": str(tiny_folder)},
            "methods": ["none", "random"],
            "budgets": {"keep": [5]},
            "tasks": ["gqa", "mme"],
            "protocol": {"limit": 12, "batch_size": 4},
        },
        source="test",
    )


def run(wanted: Manifest, out: Path, shard: Shard = WHOLE) -> outcome.Outcome:
    return runner.run(wanted, out, TOY_DATA, device="cpu", console=QUIET, shard=shard)


def load_results(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return scores and counts by cell, and every answer without what differs between processes."""
    records = record.read(folder / "records.jsonl", Record)
    answers = [
        [path.stem, answer.doc_id, answer.answer, answer.kept, answer.scores, answer.image_group]
        for path in (folder / "samples").glob("*.jsonl")
        for answer in Journal(path).answers.values()
    ]
    scores = {line.cell_id: (line.score, line.num_samples, line.visual_tokens_per_layer) for line in records}
    return scores, sorted(answers, key=json.dumps)


def test_merged_shards_give_what_one_process_gives(wanted: Manifest, tmp_path: Path) -> None:
    whole = run(wanted, tmp_path / "one")
    assert len(whole.added) == 4
    folder = tmp_path / "many" / "trial"
    for number in range(3):
        outcome = run(wanted, tmp_path / "many", Shard(number, 3))
        assert (outcome.added, outcome.failed, outcome.is_complete) == ((), (), True)
    assert not (folder / "records.jsonl").exists()
    assert len(list((folder / "samples").glob("*.*-of-3.jsonl"))) == 12
    merged = merging.merge(folder, TOY_DATA)
    assert (len(merged.added), merged.unfinished) == (4, ())
    assert load_results(folder) == load_results(tmp_path / "one" / "trial")
    assert [path.name.count(".") for path in (folder / "samples").iterdir()] == [1] * 4
    for line in record.read(folder / "records.jsonl", Record):
        assert sum(line.feature_cache.values()) == line.num_samples
    assert merging.merge(folder, TOY_DATA).added == ()


def test_a_rerun_without_shards_goes_on_from_them(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(wanted, tmp_path, Shard(0, 2))
    done = sum(len(Journal(path).answers) for path in (tmp_path / "trial" / "samples").glob("*.jsonl"))
    appended: list[int] = []
    real = Journal.append

    def append(self: Journal, answers: Any) -> None:
        answers = list(answers)
        appended.append(len(answers) if "-of-" not in self.path.name and self.answers else 0)
        real(self, answers)

    monkeypatch.setattr(Journal, "append", append)
    outcome = run(wanted, tmp_path)
    assert 0 < done < 48
    assert len(outcome.added) == 4
    assert sum(appended) == 48 - done
    assert not list((tmp_path / "trial" / "samples").glob("*-of-*"))


def test_a_shard_skips_what_other_shards_have_answered(wanted: Manifest, tmp_path: Path) -> None:
    for number in range(2):
        run(wanted, tmp_path, Shard(number, 2))
    run(wanted, tmp_path, Shard(0, 3))
    assert not [p for p in (tmp_path / "trial" / "samples").glob("*.0-of-3.jsonl") if Journal(p).answers]


def test_an_incomplete_merge_says_what_is_missing_and_keeps_what_is_there(wanted: Manifest, tmp_path: Path) -> None:
    run(wanted, tmp_path, Shard(0, 2))
    folder = tmp_path / "trial"
    outcome = merging.merge(folder, TOY_DATA)
    assert not outcome.is_complete
    assert {label for label, _, _ in outcome.unfinished} >= {"none @ all on gqa", "random @ 5 on gqa"}
    assert all(done < total for _, done, total in outcome.unfinished)
    run(wanted, tmp_path, Shard(1, 2))
    assert len(merging.merge(folder, TOY_DATA).added) + len(outcome.added) == 4


def test_a_cell_id_does_not_depend_on_the_shard(wanted: Manifest, tmp_path: Path) -> None:
    run(wanted, tmp_path, Shard(0, 2))
    planned = {cell.id for cell in plan.plan(wanted, tmp_path, TOY_DATA).pending}
    written = {path.name.split(".")[0] for path in (tmp_path / "trial" / "samples").glob("*.0-of-2.jsonl")}
    assert written == planned


@pytest.mark.parametrize("total", [1, 2, 7])
def test_every_image_belongs_to_exactly_one_shard(total: int) -> None:
    for group in map(str, range(200)):
        assert sum(Shard(number, total).owns("pope", group) for number in range(total)) == 1
    sizes = [sum(Shard(number, total).owns("pope", str(group)) for group in range(2000)) for number in range(total)]
    assert min(sizes) > 0.8 * 2000 / total


@contextmanager
def lock_elsewhere(lock: Path) -> Iterator[None]:
    """Hold a lock from another process: lmms-eval makes locks of one process reentrant."""
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        yield
        other.communicate()


def test_a_merge_and_a_whole_run_are_refused_while_a_shard_runs(wanted: Manifest, tmp_path: Path) -> None:
    run(wanted, tmp_path, Shard(0, 2))
    folder = tmp_path / "trial"
    with lock_elsewhere(folder / "shard.1-of-2.lock"):
        for start in (lambda: merging.merge(folder, TOY_DATA), lambda: run(wanted, tmp_path)):
            with pytest.raises(ConfigError, match="another dpbench is running"):
                start()
        run(wanted, tmp_path, Shard(0, 2))
        with pytest.raises(ConfigError, match="another dpbench is running"):
            run(wanted, tmp_path, Shard(1, 2))


def test_a_journal_that_is_being_written_is_read_and_not_mended(wanted: Manifest, tmp_path: Path) -> None:
    run(wanted, tmp_path, Shard(0, 2))
    path = next((tmp_path / "trial" / "samples").glob("*.0-of-2.jsonl"))
    num_answers = len(Journal(path).answers)
    path.write_bytes(path.read_bytes() + b'{"schema": 2, "ta')
    before = path.read_bytes()
    cell_id = path.name.split(".")[0]
    assert len(Shard(1, 2).open_journal(tmp_path / "trial", cell_id).answers) == num_answers
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("num_shards", "shard", "message"),
    [(4, None, "go together"), (None, 1, "go together"), (4, 4, "--shard: must be from 0 to 3, got 4")],
)
def test_shard_flags_that_do_not_fit_are_refused(num_shards: int | None, shard: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sharding.requested_shard(num_shards, shard)


def test_a_launcher_gives_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding.requested_shard(None, None) == WHOLE
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert sharding.requested_shard(None, None) == Shard(2, 4)
    with pytest.raises(ConfigError, match="the launcher already splits the samples"):
        sharding.requested_shard(2, 0)


def test_merging_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["merge", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "there is no manifest.yaml" in str(done.exception)


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[int], subprocess.CompletedProcess[str]]:
    def start(num: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "-m", "dpbench", "run", "--method", "grid", "--keep", "16"]
        command += ["--backbone", "toy-llava", "--tasks", "gqa,mme", "--limit", "8", "--device", "cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, "--out", str(tmp_path)], env=environment, capture_output=True, text=True, check=False
        )

    return start


@pytest.mark.slow
def test_accelerate_launch_splits_and_merges_by_itself(
    launch: Callable[[int], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = launch(2)
    assert done.returncode == 0, done.stderr
    assert "2 records added" in done.stderr
    folder = tmp_path / "toy-llava-grid-16"
    journals = [Journal(path) for path in (folder / "samples").glob("*.jsonl")]
    assert [len(journal.answers) for journal in journals] == [8, 8]
    assert {answer.shard for journal in journals for answer in journal.answers.values()} == {0, 1}
    assert [line.num_samples for line in record.read(folder / "records.jsonl", Record)] == [8, 8]
