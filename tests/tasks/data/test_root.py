"""Where data is looked for: whole splits only, never over the network, before anything heavy loads."""

import shutil
import socket
import sys
from pathlib import Path

import pytest
from places import TOY_DATA

from dpbench.cli import commands
from dpbench.errors import MissingError
from dpbench.tasks import TASKS, lmms_eval_adapter
from dpbench.tasks.data.root import data_files


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy mirrors somewhere else: a data root like any other."""
    return Path(shutil.copytree(TOY_DATA, tmp_path_factory.mktemp("data") / "root"))


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every address anything tries to reach while a test runs, with the hub switched on."""
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.mark.parametrize("name", list(TASKS))
def test_the_real_task_runs_on_a_data_root_without_a_call_to_the_hub(
    name: str, copied: Path, dialled: list[object]
) -> None:
    built = lmms_eval_adapter.build(name, copied, limit=4)
    assert built.images(built.requests[0])[0].size == (96, 96)
    assert dialled == []


def test_a_split_of_several_files_is_read_in_order(copied: Path) -> None:
    paths = data_files("vqav2", copied)
    assert [path.name for path in paths] == [f"validation-0000{n}-of-00003.parquet" for n in range(3)]
    docs = lmms_eval_adapter.build("vqav2", copied, limit=None).task.test_docs_no_media()
    assert docs["question_id"][:] == list(range(222))


def test_a_split_with_a_shard_missing_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TOY_DATA / "VQAv2", tmp_path / "VQAv2")
    (tmp_path / "VQAv2/data/validation-00001-of-00003.parquet").unlink()
    with pytest.raises(MissingError, match=r"2 of 3 files are in .*`dpbench data pull vqav2 --to "):
        data_files("vqav2", tmp_path)


@pytest.mark.parametrize(
    "stray", ["validation-00000-of-00001.parquet", "validation-00000-of-00003-0123456789abcdef.parquet"]
)
def test_the_files_of_two_revisions_together_are_refused(tmp_path: Path, stray: str) -> None:
    shutil.copytree(TOY_DATA / "VQAv2", tmp_path / "VQAv2")
    shutil.copy(TOY_DATA / "VQAv2/data/validation-00000-of-00003.parquet", tmp_path / "VQAv2/data" / stray)
    with pytest.raises(MissingError, match="several revisions"):
        data_files("vqav2", tmp_path)


def test_missing_data_is_one_sentence_before_the_backbone_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr("dpbench.evaluation.runner.load_backbone", fail)
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ["run", "--method", "none", "--backbone", "toy-llava", "--tasks", "mme", "--data-root", str(empty)]
    monkeypatch.setattr(sys, "argv", ["dpbench", *arguments])
    with pytest.raises(SystemExit) as done:
        commands.main()
    printed = capsys.readouterr().err
    assert done.value.code == 2
    assert f"`dpbench data pull mme --to {empty}`" in printed
    assert len(printed.strip().splitlines()) == 1


def test_data_at_another_commit_than_the_pinned_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "c" * 40
    folder = tmp_path / "datasets--lmms-lab--POPE" / "snapshots" / commit / "data"
    folder.mkdir(parents=True)
    (folder / "test-00000-of-00001.parquet").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pinned = TASKS["pope"].revision
    with pytest.raises(MissingError, match=f"which has commit {commit}, while {pinned} is read; fetch them with"):
        data_files("pope", None)
