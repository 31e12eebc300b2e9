"""The packed answers are some of the journals' own, the same for all cells, and outlive the journals."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_records import make_answer, make_record, write_run

from dpbench.errors import RecordError
from dpbench.evaluation.scoring import sort_and_pack_records
from dpbench.storage import packed_answers
from dpbench.storage.journal import Answer, pack_indices
from dpbench.storage.packed_answers import NAME, PER_CELL

RECORDS = [make_record("none", None, "pope", 90.0), make_record("grid", 16, "pope", 80.0)]
NONE, GRID = (record.cell_id for record in RECORDS)


def answers(count: int, said: str) -> list[Answer]:
    """Return answers in an order that no journal promises: the last sample first."""
    scores = {"pope_f1_score": {"prediction": said, "ground_truth": "yes", "score": 1.0}}
    return [
        make_answer("pope", at, f"image {at}", scores, answer=f"{said} {at}", kept=(pack_indices([at % 144], 144),))
        for at in reversed(range(count))
    ]


def packed_run(folder: Path, count: int) -> Path:
    write_run(folder, RECORDS, {NONE: answers(count, "yes"), GRID: answers(count, "no")})
    sort_and_pack_records(folder)
    return folder


def test_answers_come_back_as_the_journal_has_them(tmp_path: Path) -> None:
    odd = [
        make_answer("pope", 0, "a", {}, failure="too long", too_long=True, visual_tokens=(), kept=()),
        make_answer(
            "pope", 1, "b", {"exact_match": 0.3, "note": "é\n"}, answer='"<\x00', kept=(None, "8:AQ=="), ms=0.3
        ),
    ]
    write_run(tmp_path, RECORDS, {NONE: odd})
    packed_answers.pack(tmp_path)
    assert packed_answers.load(tmp_path, [NONE, GRID]) == {NONE: odd}


def test_up_to_200_evenly_spaced_samples_that_all_cells_share(tmp_path: Path) -> None:
    folder = packed_run(tmp_path, 500)
    cells = packed_answers.load(folder, [NONE, GRID])
    chosen = [answer.doc_id for answer in cells[NONE]]
    assert chosen == [answer.doc_id for answer in cells[GRID]] == [at * 500 // 200 for at in range(200)]
    assert len(chosen) == PER_CELL
    assert cells[GRID][1].answer == "no 2"
    assert [answer.doc_id for answer in packed_answers.choose(answers(3, "yes"))] == [0, 1, 2]


def test_they_outlive_the_journals_and_no_longer_than_the_records(tmp_path: Path) -> None:
    folder = packed_run(tmp_path, 3)
    before = (folder / NAME).read_bytes()
    shutil.rmtree(folder / "samples")
    sort_and_pack_records(folder)
    assert (folder / NAME).read_bytes() == before
    (folder / "records.jsonl").unlink()
    write_run(folder, RECORDS[:1])
    packed_answers.pack(folder)
    assert set(packed_answers.load(folder, [NONE, GRID])) == {NONE}


def test_a_journal_that_was_answered_again_replaces_what_was_packed(tmp_path: Path) -> None:
    folder = packed_run(tmp_path, 3)
    (folder / "samples" / f"{GRID}.jsonl").unlink()
    write_run(folder, [], {GRID: answers(3, "other")})
    packed_answers.pack(folder)
    assert packed_answers.load(folder, [GRID])[GRID][0].answer == "other 0"


def test_pandas_reads_the_file(tmp_path: Path) -> None:
    frame = pd.read_parquet(packed_run(tmp_path, 3) / NAME)
    assert frame.groupby("cell").answer.apply(list).to_dict() == {
        GRID: ["no 0", "no 1", "no 2"],
        NONE: ["yes 0", "yes 1", "yes 2"],
    }


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = packed_run(tmp_path, 3)
    path = folder / NAME
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"journal_schema": "1"}), path)
    with pytest.raises(RecordError, match=f"{NAME}: answers of schema 1, this dpbench reads 2; delete the file"):
        packed_answers.load(folder, [NONE])
    pq.write_table(table.drop_columns(["answer"]), path)
    with pytest.raises(RecordError, match=f"{NAME} cannot be read .no column answer.; delete it"):
        packed_answers.load(folder, [NONE])
    pq.write_table(table.set_column(table.column_names.index("scores"), "scores", pa.array(["{"] * len(table))), path)
    with pytest.raises(RecordError, match=f"{NAME} cannot be read"):
        packed_answers.load(folder, [NONE])
    path.write_bytes(b"PAR1")
    with pytest.raises(RecordError, match=f"{NAME} cannot be read"):
        packed_answers.load(folder, [NONE])
