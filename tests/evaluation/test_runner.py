"""A whole run on a tiny model: records, resume after a kill, nothing computed twice, changes computed again."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from places import TOY_DATA
from rich.console import Console

from dpbench import registry
from dpbench.engine import forward, shared_prefix
from dpbench.errors import ConfigError
from dpbench.evaluation import outcome, plan, runner
from dpbench.manifest import fingerprint
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record
from dpbench.tasks import lmms_eval_adapter

QUIET = Console(quiet=True)


@pytest.fixture
def manifest(tiny_folder: Path) -> Manifest:
    return make_manifest(
        {
            "name": "trial",
            "backbone": {"name": "toy-llava", "weights": str(tiny_folder)},
            "methods": ["none", "random"],
            "budgets": {"keep": [5]},
            "tasks": ["mme", "pope"],
            "protocol": {"limit": 4, "batch_size": 3},
        },
        source="test",
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts that are really answered."""
    sizes: list[int] = []
    real = shared_prefix.generate

    def generate(backbone: Any, method: Any, spliced: Any, images: Any, **options: Any) -> list[forward.Generated]:
        sizes.append(len(spliced))
        return real(backbone, method, spliced, images, **options)

    monkeypatch.setattr(shared_prefix, "generate", generate)
    return sizes


def run(manifest: Manifest, out: Path) -> outcome.Outcome:
    return runner.run(manifest, out, TOY_DATA, device="cpu", console=QUIET)


def test_a_run_leaves_records_and_journals_and_a_rerun_computes_nothing(
    manifest: Manifest, tmp_path: Path, counted: list[int]
) -> None:
    outcome = run(manifest, tmp_path)
    assert len(outcome.added) == 4
    assert sum(counted) == 16
    folder = tmp_path / "trial"
    for finished in record.read(folder / "records.jsonl", Record):
        text = json.dumps(finished.cell, sort_keys=True, ensure_ascii=False)
        assert sha256(text.encode()).hexdigest()[:16] == finished.cell_id
        assert finished.num_samples == 4
        kept = 144.0 if finished.cell["method"] == "none" else 5.0
        assert finished.visual_tokens_per_layer == (kept,) * 6
        answers = Journal(folder / "samples" / f"{finished.cell_id}.jsonl").answers
        assert len(answers) == 4
        assert all(answer.kept[0] is not None and answer.failure is None for answer in answers.values())
    assert {path.name for path in folder.iterdir()} >= {"manifest.yaml", "environment.json", "records.jsonl"}
    before = (folder / "records.jsonl").read_bytes()
    again = run(manifest, tmp_path)
    assert (len(again.added), len(again.existing), sum(counted)) == (0, 4, 16)
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_where_it_stopped(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    real = Journal.append
    calls = iter(range(99))

    def killed(self: Journal, answers: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        real(self, answers)

    monkeypatch.setattr(Journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        run(manifest, tmp_path)
    monkeypatch.setattr(Journal, "append", real)
    journalled = sum(len(Journal(path).answers) for path in (tmp_path / "trial" / "samples").glob("*.jsonl"))
    assert 0 < journalled < 16
    counted.clear()
    run(manifest, tmp_path)
    assert sum(counted) == 16 - journalled


def journalled(out: Path) -> dict[tuple[str, int], tuple[str, Any]]:
    """Return every answer and what was kept for it, by cell and sample."""
    return {
        (path.stem, answer.doc_id): (answer.answer, answer.kept)
        for path in (out / "trial" / "samples").glob("*.jsonl")
        for answer in Journal(path).answers.values()
    }


def test_resumed_answers_equal_those_of_one_run(manifest: Manifest, tmp_path: Path) -> None:
    run(manifest, tmp_path / "a")
    whole = journalled(tmp_path / "a")
    folder = tmp_path / "b" / "trial"
    shutil.copytree(tmp_path / "a" / "trial", folder)
    (folder / "records.jsonl").unlink()
    for path in (folder / "samples").glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    run(manifest, tmp_path / "b")
    assert journalled(tmp_path / "b") == whole


@pytest.mark.parametrize(
    ("method", "module", "function"),
    [
        ("fastv", "fastv", "FastV.rank"),
        ("pyramiddrop", "pyramiddrop", "PyramidDrop.rank"),
        ("holov", "holov", "crop_quotas"),
        ("prunesid", "prunesid", "semantic_groups"),
        ("cls-attention", "cls_attention", "top_indices"),
    ],
)
def test_the_selection_that_is_tested_is_the_one_that_runs(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, module: str, function: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the selection is broken")

    settings = {"methods": ["none", method], "budgets": {"keep": [5], "kind": "final"}, "tasks": ["pope"]}
    asked = make_manifest(manifest.model_dump() | settings, source="test")
    assert run(asked, tmp_path / "whole").num_failed_samples == 0
    monkeypatch.setattr(f"dpbench_baselines.{module}.{function}", broken)
    outcome = run(asked, tmp_path / "broken")
    assert [(failed.cell.method, failed.reason) for failed in outcome.failed] == [
        (method, "RuntimeError: the selection is broken")
    ]
    assert [each.cell["method"] for each in outcome.added] == ["none"]


def test_a_change_to_the_methods_source_runs_its_cells_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = make_manifest(manifest.model_dump() | {"methods": ["none", "holov"], "tasks": ["pope"]}, source="test")
    run(both, tmp_path)
    real = fingerprint.source_files
    edited = tmp_path / "holov.py"

    def source_files(module: str) -> tuple[Path, ...]:
        return tuple(edited if path.name == edited.name else path for path in real(module))

    (source,) = (path for path in real(registry.find("holov").module) if path.name == edited.name)
    monkeypatch.setattr(fingerprint, "source_files", source_files)
    for addition, answered in (("# a comment\n", []), ("CHANGED = True\n", ["holov"])):
        edited.write_text(source.read_text() + addition)
        fingerprint._source.cache_clear()
        assert [record.cell["method"] for record in run(both, tmp_path).added] == answered
    fingerprint._source.cache_clear()


def test_a_cell_named_twice_runs_once(manifest: Manifest, tmp_path: Path) -> None:
    twice = make_manifest(manifest.model_dump() | {"tasks": ["pope", "pope"]}, source="test")
    assert len(plan.plan(twice, tmp_path, TOY_DATA).pending) == 2


def test_other_data_other_cells(manifest: Manifest, tmp_path: Path) -> None:
    other = tmp_path / "data"
    shutil.copytree(TOY_DATA / "POPE", other / "POPE")
    shutil.copytree(TOY_DATA / "MME", other / "MME")
    assert {c.id for c in plan.plan(manifest, tmp_path, TOY_DATA).pending} == {
        c.id for c in plan.plan(manifest, tmp_path, other).pending
    }
    shutil.copy(next((TOY_DATA / "VQAv2").rglob("*.parquet")), next((other / "POPE").rglob("*.parquet")))
    fingerprint._data.cache_clear()
    changed = {c.id for c in plan.plan(manifest, tmp_path, other).pending}
    assert len(changed & {c.id for c in plan.plan(manifest, tmp_path, TOY_DATA).pending}) == 2


def test_a_picture_that_cannot_be_read_is_counted_not_hidden(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpbench.tasks.lmms_eval_adapter import BuiltTask

    real = BuiltTask.images
    first = lmms_eval_adapter.build("mme", TOY_DATA, limit=4)
    broken = first.image_group(first.requests[0])
    assert [first.image_group(each) == broken for each in first.requests].count(True) == 2

    def images(self: BuiltTask, request: Any) -> Any:
        if self.image_group(request) == broken:
            raise OSError("broken")
        return real(self, request)

    monkeypatch.setattr(BuiltTask, "images", images)
    assert run(manifest, tmp_path).num_failed_samples == 4
    assert run(manifest, tmp_path).num_failed_samples == 4, "a rerun must not turn a failure into a success"
    failed = [
        json.loads(line)["failure"]
        for path in (tmp_path / "trial" / "samples").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert failed.count("image could not be decoded: broken") == 4


def test_two_processes_do_not_share_a_folder(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"
    lock = str(tmp_path / "trial" / "run.lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(ConfigError, match="another dpbench is running"):
            run(manifest, tmp_path)
        other.communicate()
    assert len(run(manifest, tmp_path).added) == 4
