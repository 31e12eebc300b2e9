"""Records and journals survive a round trip, a kill, and refuse what they do not know."""

import base64
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_answer, make_profile, make_record

from dpbench.budget import EVERYTHING, BudgetRequest
from dpbench.errors import RecordError, StorageError
from dpbench.storage import record
from dpbench.storage.journal import Journal, count_indices, pack_indices
from dpbench.storage.record import Profile, Record

RECORD = replace(
    make_record("random", 16, "pope", 50.0, params={"layers": [1, 2]}, fingerprints={"weights": "w", "source": "1"}),
    cell_id="b",
    metrics={"exact_match": 0.5},
    feature_cache={"hits": 3, "encoded": 1},
    environment={"device": "cpu", "versions": {"torch": "2.15"}},
)
PROFILE = make_profile("grid", "16", [1.0, 2.0])
ANSWER = make_answer("pope", 3, "image", {"pope_accuracy": {"score": 1.0}}, answer="yes", kept=("144:AA==", None))


@pytest.mark.parametrize("line", [RECORD, PROFILE])
def test_round_trip(tmp_path: Path, line: Record | Profile) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    record.append(path, line)
    record.append(path, line)
    assert record.read(path, type(line)) == [line, line]


def test_rewriting_sorts_by_cell(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record.rewrite(path, [RECORD, replace(RECORD, cell_id="a")])
    assert [line.cell_id for line in record.read(path, Record)] == ["a", "b"]


def test_lines_of_before_samples_were_left_out_are_read(tmp_path: Path) -> None:
    old = tmp_path / "records.jsonl"
    record.append(old, RECORD)
    old.write_text(old.read_text().replace('"num_too_long": 0, ', ""))
    assert "too_long" not in old.read_text()
    assert record.read(old, Record) == [RECORD]
    journal = tmp_path / "cell.jsonl"
    Journal(journal).append([ANSWER])
    journal.write_text(journal.read_text().replace(', "too_long": false', ""))
    assert "too_long" not in journal.read_text()
    assert list(Journal(journal).answers.values()) == [ANSWER]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"schema": 99}', "schema 99"), ('{"schema": 2}', "missing or unknown"), ('{"schema"', "not JSON")],
)
def test_unknown_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(RecordError, match=message):
        record.read(path, Record)


def test_a_journal_comes_back_and_loses_only_the_line_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    Journal(path).append([ANSWER, replace(ANSWER, doc_id=4)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "task": "po')
    journal = Journal(path)
    assert list(journal.answers.values()) == [ANSWER, replace(ANSWER, doc_id=4)]
    journal.append([replace(ANSWER, doc_id=5)])
    assert path.read_bytes().startswith(whole + b"{")
    assert len(Journal(path).answers) == 3


def test_a_record_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record.append(path, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "ce')
    assert len(record.read(path, Record)) == 1
    record.append(path, RECORD)
    assert path.read_bytes() == whole * 2


def test_a_complete_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record.append(path, RECORD)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    record.append(path, RECORD)
    assert record.read(path, Record) == [RECORD, RECORD]


@pytest.mark.parametrize("tail", [b"", b'{"schema": 2, "ce'], ids=["whole", "cut off"])
@pytest.mark.parametrize("write", [record.append, lambda path, line: record.rewrite(path, [line])])
def test_a_full_disk_leaves_the_records_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Record], None], tail: bytes
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "records.jsonl"
    record.append(path, RECORD)
    before = path.read_bytes() + tail
    path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as refusal:
        write(path, replace(RECORD, cell_id="a"))
    assert str(refusal.value) == (
        f"{path}: cannot be written (No space left on device); finished work is kept: "
        "free some space, then run the same command again"
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no partial file is left"


def test_line_separators_inside_an_answer_split_no_line(tmp_path: Path) -> None:
    odd = replace(ANSWER, answer="a\u2028b\x85c")
    Journal(tmp_path / "cell.jsonl").append([odd])
    assert list(Journal(tmp_path / "cell.jsonl").answers.values()) == [odd]


def test_only_the_newest_record_of_a_cell_counts() -> None:
    newer_source = {**RECORD.cell, "fingerprints": {"weights": "w", "source": "2"}}
    new = replace(RECORD, cell=newer_source, finished="2026-11-25T00:00:00")
    other_weights = replace(RECORD, cell={**RECORD.cell, "fingerprints": {"weights": "v", "source": "1"}})
    assert {id(line) for line in record.newest([new, RECORD, other_weights])} == {id(new), id(other_weights)}


@pytest.mark.parametrize("budget", [EVERYTHING, BudgetRequest(keep=64), BudgetRequest(prune_rate=0.889)])
def test_a_profiles_budget_is_read_back_from_its_label(budget: BudgetRequest) -> None:
    assert replace(PROFILE, budget=budget.label).budget_request == budget


def test_a_rate_whose_label_is_a_hundred_percent_can_be_read_back() -> None:
    label = BudgetRequest(prune_rate=0.9999).label
    assert label == "-100.0%"
    assert replace(PROFILE, budget=label).budget_request.label in ("-99.9%", "-100.0%")


@pytest.mark.parametrize("label", ["", "many", "0", "-%", "nan%", "1.5"])
def test_a_profile_with_an_unknown_budget_is_an_error(label: str) -> None:
    with pytest.raises(RecordError, match="of a profile is neither a count"):
        _ = replace(PROFILE, budget=label).budget_request


def test_an_old_journal_is_refused_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    path.write_text('{"schema": 0}\n')
    with pytest.raises(RecordError, match="journal schema 0"):
        Journal(path)


def test_kept_indices_pack() -> None:
    packed = pack_indices([0, 3, 143], 144)
    assert packed is not None
    size, bits = packed.split(":")
    assert size == "144"
    assert int.from_bytes(base64.b64decode(bits), "little") == 1 << 0 | 1 << 3 | 1 << 143
    assert len(packed) < 30
    assert pack_indices([143, 0, 3], 144) == packed, "the order is lost"
    assert count_indices(packed) == 3
    assert pack_indices([3, 3], 144) is None
    assert pack_indices([3, -1, 0, 143, -1], 144) == packed, "a row that is no token is left out (HoloV's zeros)"
    assert pack_indices([-1, -1], 144) is None
    assert pack_indices([], 144) == "144:" + "A" * 24
