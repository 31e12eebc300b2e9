"""Records and journals survive a round trip, a kill, and refuse what they do not know."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dpbench.errors import RecordError
from dpbench.storage import record
from dpbench.storage.journal import Answer, Journal, pack_indices, unpack_indices
from dpbench.storage.record import Profile, Record

RECORD = Record(
    cell_id="b",
    cell={"method": "random", "params": {"layers": [1, 2]}},
    metrics={"exact_match": 0.5},
    score=50.0,
    num_samples=2,
    num_failed=0,
    visual_tokens_per_layer=(16.0, 16.0),
    feature_cache={"hits": 3, "encoded": 1},
    wall_s=0.5,
    finished="2026-11-24T12:00:00+00:00",
    versions={"torch": "2.15"},
    environment={"device": "cpu", "versions": {"torch": "2.15"}},
)
PROFILE = Profile(
    backbone="toy-llava",
    weights="random",
    method="grid",
    params={},
    budget="16",
    configuration="eager",
    batch_size=1,
    num_images=1,
    image_hw=(96, 96),
    num_visual=16.0,
    visual_tokens_per_layer=(16, 16),
    num_text=14,
    stages_ms={"encode": (1.0, 2.0), "ttft": (1.0, 2.0)},
    warmups=1,
    stages_flops={"encode": 10},
    peak_bytes={},
    weights_bytes=100,
    kv_bytes_per_layer=(8, 8),
    joules={},
    bound_ms={},
    rates={},
    flags=(),
    monitor={},
    environment={"device": "cpu"},
)
ANSWER = Answer(
    task="pope",
    doc_id=3,
    image_hash="i",
    prompt_hash="p",
    image_group="i",
    answer="yes",
    scores={"pope_accuracy": {"score": 1.0}},
    visual_tokens=(16, 16),
    kept=("144:AA==", None),
    failure=None,
    seed=0,
    shard=0,
    cache_hits=0,
    encoded=1,
    ms=1.5,
)


@pytest.mark.parametrize("line", [RECORD, PROFILE])
def test_round_trip(tmp_path: Path, line: Record | Profile) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    record.append(path, line)
    record.append(path, line)
    back = record.read(path, type(line))
    assert [json.dumps(record.asdict(each)) for each in back] == [json.dumps(record.asdict(line))] * 2


def test_rewriting_sorts_by_cell(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record.rewrite(path, [RECORD, replace(RECORD, cell_id="a")])
    assert [each.cell_id for each in record.read(path, Record)] == ["a", "b"]


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


def test_line_separators_inside_an_answer_split_no_line(tmp_path: Path) -> None:
    odd = replace(ANSWER, answer="a\u2028b\x85c")
    Journal(tmp_path / "cell.jsonl").append([odd])
    assert list(Journal(tmp_path / "cell.jsonl").answers.values()) == [odd]


def test_only_the_newest_record_of_a_cell_counts() -> None:
    cell = {**RECORD.cell, "fingerprints": {"weights": "w", "source": "1"}}
    old = replace(RECORD, cell=cell)
    new = replace(old, cell={**cell, "fingerprints": {"weights": "w", "source": "2"}}, finished="2026-11-25T00:00:00")
    other = replace(old, cell={**cell, "fingerprints": {"weights": "v", "source": "1"}})
    assert {id(each) for each in record.newest([new, old, other])} == {id(new), id(other)}


def test_an_old_journal_is_refused_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    path.write_text('{"schema": 0}\n')
    with pytest.raises(RecordError, match="journal schema 0"):
        Journal(path)


def test_kept_indices_pack() -> None:
    packed = pack_indices([0, 3, 143], 144)
    assert packed is not None
    assert unpack_indices(packed) == [0, 3, 143]
    assert len(packed) < 30
    assert pack_indices([143, 0, 3], 144) == packed, "the order is lost"
    assert pack_indices([3, 3], 144) is None
    assert pack_indices([-1, 2], 144) is None
    assert pack_indices([], 144) == "144:" + "A" * 24
