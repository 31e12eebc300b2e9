"""A damaged journal: good lines count, bad ones are named and answered again, and reading changes nothing."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made_records import make_answer
from places import TOY_DATA
from rich.console import Console

from dpbench.engine import shared_prefix
from dpbench.errors import RecordError, StorageError
from dpbench.evaluation import outcome, runner
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import files
from dpbench.storage.journal import Journal

ANSWER = make_answer("pope", 0, "image", {"pope_accuracy": {"score": 1.0}}, answer="yes", kept=("144:AA==", None))
ANSWERS = [replace(ANSWER, doc_id=number) for number in range(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cell.jsonl"
    Journal(path).append(ANSWERS)
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def changed(**values: object) -> bytes:
    return json.dumps({**asdict(ANSWERS[1]), **values}).encode() + b"\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\n",
        b"\xff\xfe\x00\n",
        bytes(4096) + b"\n",
        b"\n",
        b"null\n",
        b"7\n",
        b"[]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"schema": 2}\n',
        changed(schema="two"),
        changed(extra=1),
        changed(doc_id="1"),
        changed(visual_tokens=None),
        changed(kept="all"),
        changed(scores=[]),
        changed(ms=None),
        json.dumps({k: v for k, v in asdict(ANSWERS[1]).items() if k != "schema"}).encode() + b"\n",
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_garbage_in_the_middle_costs_its_line(path: Path, garbage: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, *rest = lines(path)
    damaged = b"".join([first, garbage, *rest])
    path.write_bytes(damaged)
    journal = Journal(path)
    assert list(journal.answers.values()) == [ANSWERS[0], *ANSWERS[2:]]
    said = f"{path}: line 2 is not an answer; ignored, samples without an answer are answered again\n"
    assert capsys.readouterr().err == said
    assert path.read_bytes() == damaged, "a report may read beside a run"
    journal.append([ANSWERS[1]])
    assert list(Journal(path).answers.values()) == [ANSWERS[0], *ANSWERS[2:], ANSWERS[1]]
    assert capsys.readouterr().err == "", "told once"


def test_a_line_that_is_there_twice_counts_once_and_the_first_one(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"".join([*lines(path), changed(answer="no"), lines(path)[3]]))
    journal = Journal(path)
    assert list(journal.answers.values()) == ANSWERS
    assert "lines 5, 6 repeat others" in capsys.readouterr().err
    journal.mend()
    assert len(lines(path)) == 4


def test_all_faults_are_told_in_one_sentence(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"".join([b"x\n" * 12, *lines(path), lines(path)[0], b'{"schema": 2, "ta']))
    Journal(path)
    assert capsys.readouterr().err == (
        f"{path}: lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more are not answers, line 17 repeats another, line 18 is "
        "cut off; ignored, samples without an answer are answered again\n"
    )


@pytest.mark.parametrize("schema", [0, 1, 3, 99])
def test_another_schema_is_refused_by_name(path: Path, schema: int) -> None:
    path.write_bytes(b"".join([lines(path)[0], changed(schema=schema)]))
    with pytest.raises(RecordError, match=rf"cell.jsonl:2: journal schema {schema}, this dpbench reads 2"):
        Journal(path)


def test_every_cut_of_a_journal_leaves_its_whole_lines(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        journal = Journal(path)
        count = whole[:size].count(b"\n")
        assert list(journal.answers.values()) == ANSWERS[:count]
        journal.append(ANSWERS[count:])
        assert path.read_bytes() == whole


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        Journal(path).append([replace(ANSWER, doc_id=9)])
    assert path.read_bytes() == before
    monkeypatch.undo()
    Journal(path).append([replace(ANSWER, doc_id=9)])
    assert len(Journal(path).answers) == 5


def test_a_journal_is_mended_as_a_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x\n" + path.read_bytes())
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        Journal(path).mend()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_write_that_the_disk_takes_in_parts_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., object] = Path.open

    class Slow:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> object:
            return self.stream.write(data[:10])  # type: ignore[attr-defined]

    monkeypatch.setattr(Path, "open", lambda self, *given, **named: Slow(real(self, *given, **named)))
    files.append(path, b"0123456789" * 5 + b"\n", sync=True)
    monkeypatch.undo()
    assert lines(path)[-1] == b"0123456789" * 5 + b"\n"


@pytest.fixture
def wanted(tiny_folder: Path) -> Manifest:
    given = {"name": "trial", "backbone": {"name": "toy-llava", "weights": str(tiny_folder)}, "methods": ["grid"]}
    protocol = {"budgets": {"keep": [5]}, "tasks": ["pope"], "protocol": {"limit": 8, "batch_size": 4}}
    return make_manifest(given | protocol, source="test")


def test_a_run_answers_again_what_is_damaged_and_nothing_else(
    wanted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Path) -> outcome.Outcome:
        return runner.run(wanted, out, TOY_DATA, device="cpu", console=Console(quiet=True))

    (whole,) = run(tmp_path).added
    folder = tmp_path / "trial"
    path = folder / "samples" / f"{whole.cell_id}.jsonl"
    before = Journal(path).answers
    path.write_bytes(b"".join([*lines(path)[:3], b"garbage\n", lines(path)[0], *lines(path)[5:7], lines(path)[7][:-9]]))
    (folder / "records.jsonl").unlink()
    capsys.readouterr()
    answered: list[int] = []
    real = shared_prefix.generate

    def generate(backbone: object, method: object, spliced: list[object], *rest: object, **options: object) -> object:
        answered.append(len(spliced))
        return real(backbone, method, spliced, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_prefix, "generate", generate)
    (again,) = run(tmp_path).added
    said = capsys.readouterr().err
    assert said.count(str(path)) == 1
    assert "line 4 is not an answer, line 5 repeats another, line 8 is cut off" in said
    assert sum(answered) == 3, "lines 4, 5 and 8 of 8"
    assert again.score == whole.score
    after = Journal(path).answers
    assert {key: (answer.answer, answer.kept) for key, answer in after.items()} == {
        key: (answer.answer, answer.kept) for key, answer in before.items()
    }
    assert len(lines(path)) == 8
