"""A faulty method fails its own cells with its name and the reason; the other cells go on."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_methods import REASONS, FailsLater, InsideFewer, Raises, entry_points, named
from places import TOY_DATA
from rich.console import Console

from dpbench import registry
from dpbench.cli import commands
from dpbench.errors import ConfigError, StorageError
from dpbench.evaluation import outcome, runner, scoring
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**registry.methods(), **entry_points()}
    monkeypatch.setattr(registry, "methods", lambda: known)


def grid(folder: Path, methods: list[str], **protocol: Any) -> Manifest:
    given = {"name": "trial", "backbone": {"name": "toy-llava", "weights": str(folder)}, "methods": methods}
    budgets = {"budgets": {"keep": [5], "kind": "final"}, "tasks": ["pope"]}
    return make_manifest(given | budgets | {"protocol": {"limit": 4, "batch_size": 2, **protocol}}, source="test")


def run(wanted: Manifest, out: Path, output: io.StringIO | None = None) -> outcome.Outcome:
    return runner.run(wanted, out, TOY_DATA, device="cpu", console=Console(file=output or io.StringIO(), width=200))


def test_every_fault_fails_its_cell_alone_and_is_tried_again(tiny_folder: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    wanted = grid(tiny_folder, ["none", *map(named, REASONS), "grid"])
    outcome = run(wanted, tmp_path, output)
    reasons = {failed.cell.method: failed.reason for failed in outcome.failed}
    assert reasons.keys() == {named(method) for method in REASONS}
    for method, reason in REASONS.items():
        assert reasons[named(method)].startswith(reason)
    assert not outcome.is_complete
    assert [added.cell["method"] for added in outcome.added] == ["none", "grid"]
    assert output.getvalue().count("Traceback") == 1, "the first failure's"
    folder = tmp_path / "trial"
    assert {finished.cell["method"] for finished in record.read(folder / "records.jsonl", Record)} == {"none", "grid"}
    for failed in outcome.failed:
        assert not Journal(folder / "samples" / f"{failed.cell.id}.jsonl").answers
    again = run(wanted, tmp_path)
    assert (again.failed, len(again.existing), again.added) == (outcome.failed, 2, ())


def test_a_record_has_the_tokens_that_a_method_kept_not_those_its_cut_allowed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (added,) = run(grid(tiny_folder, [named(InsideFewer)]), tmp_path).added
    assert added.visual_tokens_per_layer == (144, 144, 3, 3, 3, 3)


def test_a_cell_that_fails_late_keeps_its_answers_and_goes_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailsLater, "images_left", 2)
    wanted = grid(tiny_folder, [named(FailsLater)])
    (failed,) = run(wanted, tmp_path).failed
    path = tmp_path / "trial" / "samples" / f"{failed.cell.id}.jsonl"
    assert (failed.reason, len(Journal(path).answers)) == ("RuntimeError: not now", 2)
    monkeypatch.setattr(FailsLater, "images_left", 2)
    outcome = run(wanted, tmp_path)
    assert (outcome.failed, [added.num_samples for added in outcome.added]) == ((), [4])


def test_a_task_that_cannot_be_scored_fails_its_cell_and_keeps_its_answers(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no score")

    monkeypatch.setattr(scoring, "_build_record", broken)
    (failed,) = run(grid(tiny_folder, ["none"]), tmp_path).failed
    assert failed.reason == "ArithmeticError: no score"
    monkeypatch.undo()
    assert len(run(grid(tiny_folder, ["none"]), tmp_path).added) == 1


def test_the_command_ends_with_a_table_and_exit_code_one(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(grid(tiny_folder, ["none", named(Raises)]).model_dump_json(exclude_none=True))
    arguments = ["run", str(path), "--out", str(tmp_path / "out"), "--data-root", str(TOY_DATA)]
    monkeypatch.setattr(sys, "argv", ["dpbench", *arguments])
    with pytest.raises(SystemExit) as done:
        commands.main()
    assert done.value.code == 1
    table = capsys.readouterr().err.splitlines()[-5:]
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == ["cell that failed", "reason"]
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == [
        "bad-Raises @ 5 on pope",
        "ZeroDivisionError: no such luck",
    ]
    assert table[-1].startswith("1 record added")


@pytest.mark.parametrize("error", [StorageError("full"), OSError(28, "No space left on device")])
def test_an_error_that_concerns_the_whole_run_fails_no_cell(error: Exception, tiny_folder: Path) -> None:
    failed_cells = FailedCells(Console(quiet=True))
    with pytest.raises(type(error)), failed_cells.catch(only_cell(tiny_folder)):
        raise error
    assert failed_cells.all == ()


def only_cell(folder: Path) -> Cell:
    return next(cells(grid(folder, ["none"])))


def test_bad_input_refuses_the_whole_run_before_anything_is_answered(tiny_folder: Path) -> None:
    failed_cells = FailedCells(Console(quiet=True))
    with pytest.raises(ConfigError), failed_cells.catch(only_cell(tiny_folder), reraise=ConfigError):
        raise ConfigError("out of reach")


def test_a_gpu_that_is_lost_ends_the_run_with_the_cells_name(tiny_folder: Path) -> None:
    with (
        pytest.raises(torch.AcceleratorError) as raised,
        FailedCells(Console(quiet=True)).catch(only_cell(tiny_folder)),
    ):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    assert "none @ all on pope" in raised.value.__notes__[0]
