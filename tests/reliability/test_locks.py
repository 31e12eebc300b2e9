"""Two processes on one run folder: the second waits or says who holds it, and the dead hold nothing."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from filelock._api import FileLockMeta
from places import TOY_DATA
from pyarrow import parquet

from dpbench.diffprune.sources import open_source
from dpbench.errors import ConfigError, DpbenchError, StorageError
from dpbench.evaluation import merging
from dpbench.evaluation.sharding import WHOLE, Shard, hold_folder
from dpbench.storage import locks
from dpbench.tasks import lmms_eval_adapter
from dpbench.tasks.data import pull

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom dpbench.evaluation.sharding import Shard, hold_folder\n"
    "with hold_folder(Path(sys.argv[1]), Shard(int(sys.argv[2]), int(sys.argv[3]))):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def holder(folder: Path, shard: Shard = WHOLE) -> Iterator[subprocess.Popen[bytes]]:
    """Hold a run folder from another process; its stdin closed, it leaves."""
    command = [sys.executable, "-c", HOLD, str(folder), str(shard.number), str(shard.total)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        yield other
        if other.poll() is None:
            other.communicate()


def test_the_second_waits_and_says_for_whom(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path) as other:

        def waiting(text: str) -> None:
            said.append(text)
            assert other.stdin is not None
            other.stdin.close()

        with hold_folder(tmp_path, notify=waiting):
            assert other.wait(5) == 0
    (text,) = said
    assert text.startswith(f"{tmp_path}: waiting for another dpbench (process {other.pid} on ")
    assert "since 2" in text
    assert text.endswith("; --no-wait refuses instead")


@pytest.mark.parametrize("shard", [WHOLE, Shard(0, 2)], ids=lambda shard: shard.label)
def test_without_waiting_the_second_is_refused_at_once(tmp_path: Path, shard: Shard) -> None:
    with (
        holder(tmp_path, shard) as other,
        pytest.raises(ConfigError, match=rf"another dpbench is running there \(process {other.pid} on .* since"),
        hold_folder(tmp_path, shard),
    ):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == other.pid
        with hold_folder(tmp_path):
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_lock_whose_file_says_nothing_is_still_a_lock(tmp_path: Path) -> None:
    with holder(tmp_path):
        for text in ("", "{", "[]", '{"pid": 1}'):
            (tmp_path / "run.lock").write_text(text)
            with pytest.raises(ConfigError, match="another dpbench is running there; wait for it"):
                locks.take(tmp_path / "run.lock", seconds=0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named_with_a_way_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS without its lock service has none; a soft lock in its place would stay behind a dead process."""

    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    sentence = rf"{tmp_path}: its file system cannot lock files \({os.strerror(number)}\).*give --out on a local disk"
    with pytest.raises(ConfigError, match=sentence):
        locks.take(tmp_path / "run.lock", seconds=0)
    for shard in (WHOLE, Shard(0, 2)):
        with pytest.raises(locks.NoLocksError), hold_folder(tmp_path, shard, notify=lambda _: pytest.fail("it waits")):
            pass
    monkeypatch.undo()
    with hold_folder(tmp_path):
        pass  # nothing is left behind


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link"])
def test_a_lock_file_that_is_something_else_is_named_and_left_alone(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "run.lock", tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
    if kind == "link":
        other.write_text("of somebody")
    with pytest.raises(ConfigError, match=rf"^{path}: cannot be opened as a lock file \(.*\); remove it if it is not"):
        locks.take(path, seconds=0)
    assert kind == "folder" or path.is_symlink()
    assert kind != "link" or other.read_text() == "of somebody"


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.EACCES, ConfigError, "cannot be opened as a lock file (Permission denied); "),
        (errno.EPERM, ConfigError, "cannot be opened as a lock file (Operation not permitted); "),
        (errno.EROFS, StorageError, "cannot be written (Read-only file system); "),
        (errno.ENOSPC, StorageError, "cannot be written (No space left on device); "),
        (errno.EDQUOT, StorageError, "cannot be written (Disk quota exceeded); "),
    ],
)
def test_a_lock_file_that_cannot_be_made_is_one_sentence(
    number: int, error: type[DpbenchError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: object) -> int:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(error) as raised:
            locks.take(tmp_path / "run.lock", seconds=0)
    assert str(raised.value).startswith(f"{tmp_path / 'run.lock'}: {said}")


@pytest.mark.parametrize("content", ["", '{"pid": 1, "host": "elsewhere", "since": "2020"}', "\udcff"])
def test_the_lock_file_of_one_who_is_gone_is_taken_over(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text(content, errors="surrogateescape")
    locks.take(path, seconds=0).release()
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_training_and_download_name_the_folder_that_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training converts parquet files in the cache of `datasets`; a download locks each file that it writes."""
    parquet.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def no_lock(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with pytest.raises(locks.NoLocksError, match=rf"^{tmp_path / 'cache'}: .*; set HF_DATASETS_CACHE to a folder on a"):
        open_source(str(tmp_path), seed=0)
    with pytest.raises(locks.NoLocksError, match=rf"^{tmp_path}: .*; give --out on a local disk"):
        locks.take(tmp_path / "train.lock", seconds=1)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_lock)
    info = SimpleNamespace(id="a/b", sha="c")
    with pytest.raises(locks.NoLocksError, match=rf"^{tmp_path / 'data'}: .*; give --to DIR on a local disk"):
        pull._fetch(info, [], tmp_path / "data", None)  # type: ignore[arg-type]


def test_lmms_evals_shared_locks_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval gives every `FileLock` of a path the same instance, which its holder could take twice."""
    from lmms_eval import evaluator

    monkeypatch.setattr(FileLockMeta, "__call__", FileLockMeta.__call__)  # puts lmms-eval's change back afterwards
    monkeypatch.setattr(evaluator._enable_reentrant_filelocks, "_patched", False, raising=False)
    evaluator._enable_reentrant_filelocks()
    first = locks.take(tmp_path / "run.lock", seconds=0)
    with pytest.raises(ConfigError, match="another dpbench is running there"):
        locks.take(tmp_path / "run.lock", seconds=0)
    first.release()
    locks.take(tmp_path / "run.lock", seconds=0).release()


def test_a_cache_of_datasets_without_locks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with pytest.raises(locks.NoLocksError, match=r"cannot lock files .*set HF_DATASETS_CACHE to a folder on a local"):
        lmms_eval_adapter.build("pope", TOY_DATA, limit=2)


def test_shards_run_side_by_side_and_the_same_one_does_not(tmp_path: Path) -> None:
    with holder(tmp_path, Shard(0, 2)):
        with hold_folder(tmp_path, Shard(1, 2)):
            pass
        for mine in (Shard(0, 2), WHOLE):
            with (
                pytest.raises(ConfigError, match=r"another dpbench is running there \(process"),
                hold_folder(tmp_path, mine),
            ):
                pass
        with hold_folder(tmp_path, Shard(1, 2)):
            pass  # a refused one has left nothing locked


def test_a_shard_that_waits_for_its_like_keeps_no_other_from_starting(tmp_path: Path) -> None:
    with holder(tmp_path, Shard(0, 2)) as first:

        def waiting(_: str) -> None:
            with holder(tmp_path, Shard(1, 2)):
                pass
            assert first.stdin is not None
            first.stdin.close()

        with hold_folder(tmp_path, Shard(0, 2), notify=waiting):
            assert first.wait(5) == 0


def dpbench(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dpbench", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


CELL = ("--method", "grid", "--keep", "16", "--backbone", "toy-llava", "--tasks", "gqa", "--limit", "12")


def answered(folder: Path) -> Counter[int]:
    return Counter(
        json.loads(line)["doc_id"]
        for path in (folder / "toy-llava-grid-16" / "samples").glob("*.jsonl")
        for line in path.read_text().splitlines()
    )


@pytest.mark.slow  # real processes; the tests above hold the lock in one process and in another
def test_two_commands_on_one_folder_answer_every_sample_once(tmp_path: Path) -> None:
    with holder_of_run(tmp_path):
        started = [dpbench("run", *CELL, "--out", str(tmp_path)) for _ in range(2)]
        refused = dpbench("run", *CELL, "--out", str(tmp_path), "--no-wait")
        assert "another dpbench is running there (process" in refused.communicate()[1]
        assert refused.returncode == 2
    said = [each.communicate()[1] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    assert all("waiting for another dpbench" in text.replace("\n", " ") for text in said)
    assert sorted(text.strip().splitlines()[-1].split(" records")[0] for text in said) == ["0", "1"]
    assert set(answered(tmp_path).values()) == {1}


@contextmanager
def holder_of_run(out: Path) -> Iterator[None]:
    (out / "toy-llava-grid-16").mkdir()
    with holder(out / "toy-llava-grid-16"):
        yield


@pytest.mark.slow  # shards and merging are pinned by tests/evaluation/test_merging.py, in one process
def test_two_shards_at_once_never_collide(tmp_path: Path) -> None:
    shards = [("--num-shards", "2", "--shard", str(number)) for number in range(2)]
    started = [dpbench("run", *CELL, "--out", str(tmp_path), *shard) for shard in shards]
    for each in started:
        said = each.communicate()[1]
        assert each.returncode == 0, said
    once = answered(tmp_path)
    assert set(once.values()) == {1}
    outcome = merging.merge(tmp_path / "toy-llava-grid-16", TOY_DATA)
    assert [each.num_samples for each in outcome.added] == [12] == [len(once)]


def test_an_earlier_filelocks_error_without_locks_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its soft fallback, filelock raised NotImplementedError for ENOSYS; the bounds in pyproject allow these."""

    def no_flock(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(locks.OwnFileLock, "acquire", no_flock)
    with pytest.raises(locks.NoLocksError, match=r"cannot lock files \(FileSystem does not appear to support flock\)"):
        locks.take(tmp_path / "run.lock", seconds=0)
