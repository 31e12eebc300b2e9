"""How many answers: the benchmarks as published, the mirrors as they are, limits."""

from pathlib import Path

import pytest
from places import RESULTS, TOY_DATA

from dpbench.estimate.workload import answer_limit, load_tasks
from dpbench.manifest.reading import load_manifest, make_manifest
from dpbench.storage.record import Record, read


def test_a_benchmark_that_is_not_there_has_its_published_size(tmp_path: Path) -> None:
    part = load_manifest(Path("table1-llava-1.5"))
    loads = {load.task: load for load in load_tasks(part, tmp_path)}
    assert (loads["pope"].num_questions, loads["pope"].num_images) == (9000, 500)
    assert loads["vqav2_val_10k"].num_questions == 10_000
    assert loads["seedbench_all"].num_questions == 17_990
    per_task = 1 + 3 * (5 + 2 * 3)  # none; three budgets of five methods, and of two that draw, by three seeds
    assert {len(load.cells) for load in loads.values()} == {per_task}


def test_a_mirror_has_as_many_questions_as_its_run_answered() -> None:
    answered = {record.cell["task"]: record.num_samples for record in read(RESULTS / "toy-full/records.jsonl", Record)}
    loads = load_tasks(load_manifest(Path("toy-full")), TOY_DATA)
    found = {load.task: load.num_questions for load in loads}
    del found["seedbench"], answered["seedbench"]  # its rows have videos too, which it does not ask
    assert found == answered
    assert next(load.num_images for load in loads if load.task == "gqa") == 86


def test_a_limit_takes_its_share_of_the_images(tmp_path: Path) -> None:
    data = {"name": "few", "backbone": "llava-1.5", "methods": ["none"], "tasks": ["pope"], "protocol": {"limit": 90}}
    (load,) = load_tasks(make_manifest(data, source="test"), tmp_path)
    assert (load.num_questions, load.num_images, load.num_answers) == (90, 5, 90)


@pytest.mark.parametrize(("task", "tokens"), [("gqa", 16), ("mmbench_cn", 32), ("vqav2_val_10k", 16)])
def test_the_limit_of_an_answer_is_the_tasks(task: str, tokens: int) -> None:
    assert answer_limit(task) == tokens
