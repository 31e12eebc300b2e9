"""A row without an image or without a question costs its own sample, in every kind of task."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import TOY_DATA
from rich.console import Console

from dpbench import tasks
from dpbench.evaluation import runner
from dpbench.manifest.reading import make_manifest
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record
from dpbench.tasks.data.root import data_files


def copy_changed(root: Path, name: str, change: dict[str, Any], row: int = 2) -> None:
    """Write a benchmark's toy split with one row changed, and its images unchanged."""
    benchmark = tasks.find(name)
    for config in filter(None, (benchmark.config, benchmark.images)):
        (source,) = data_files(name, TOY_DATA, config)
        table = pq.read_table(source)
        rows = table.to_pylist()
        if config == benchmark.config:
            rows[row] |= change
        target = root / source.relative_to(TOY_DATA)
        target.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("pope", {"image": None}, "image could not be decoded"),
        ("textvqa", {"image": {"bytes": b"no image", "path": None}}, "image could not be decoded"),
        ("gqa", {"imageId": "nowhere"}, "image could not be decoded"),
        ("seedbench", {"image": [None]}, "image could not be decoded"),
        ("pope", {"question": None}, "question is empty"),
        ("gqa", {"question": ""}, "question is empty"),
        ("mmbench_en", {"question": None}, "question is empty"),
        ("mme", {"question": None}, "question is empty"),
        ("scienceqa", {"choices": None}, "choices is empty"),
        ("seedbench", {"choice_c": None}, "choice_c is empty"),
        ("vizwiz", {"question": None}, "question is empty"),
    ],
)
def test_an_odd_row_costs_one_sample(name: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    copy_changed(tmp_path / "data", name, change)
    data = {"name": "odd", "backbone": "toy-llava", "methods": ["none"], "tasks": [name], "protocol": {"limit": 6}}
    outcome = runner.run(
        make_manifest(data, source="test"), tmp_path, tmp_path / "data", device="cpu", console=Console(quiet=True)
    )
    assert not outcome.failed
    (row,) = record.read(tmp_path / "odd" / "records.jsonl", Record)
    answers = Journal(tmp_path / "odd" / "samples" / f"{row.cell_id}.jsonl").answers.values()
    failures = {answer.doc_id: answer.failure for answer in answers if answer.failure}
    assert list(failures) == [2]
    assert failures[2].startswith(reason)
    assert (row.num_failed, len(answers)) == (1, row.num_samples)
    assert row.num_samples >= 6
    assert not outcome.is_complete, "one of a few is more than one in a hundred"
