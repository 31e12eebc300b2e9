"""What `dpbench run` prints at the end, and its exit code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpbench import registry
from dpbench.cli import list_details, messages
from dpbench.cli.commands import app
from dpbench.evaluation import launch
from dpbench.evaluation.outcome import Outcome
from dpbench.evaluation.sharding import Shard
from dpbench.manifest.schema import Manifest
from dpbench.storage.record import Record

COMMAND = ("run", "--method", "grid", "--keep", "16", "--backbone", "toy-llava", "--tasks", "pope")
RECORD = Record(
    cell_id="abc",
    cell={"backbone": "toy-llava", "method": "grid", "task": "pope", "params": {}, "keep": 16, "prune_rate": None},
    metrics={},
    score=50.0,
    num_samples=200,
    num_failed=0,
    visual_tokens_per_layer=(16.0,),
    feature_cache={"hits": 150, "encoded": 50},
    wall_s=1.0,
    finished="2026-11-26T00:00:00+00:00",
    versions={},
    environment={},
)


@pytest.mark.parametrize(("num_failed", "exit_code"), [(0, 0), (2, 0), (3, 1)])
def test_more_than_one_percent_without_an_answer_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, num_failed: int, exit_code: int
) -> None:
    outcome = Outcome((replace(RECORD, num_failed=num_failed),))
    assert outcome.is_complete == (exit_code == 0)
    monkeypatch.setattr(launch, "run", lambda *_, **__: outcome)
    done = CliRunner().invoke(app, COMMAND)
    assert done.exit_code == exit_code
    assert (f"{num_failed} of 200 samples failed: grid on pope" in done.output) == bool(num_failed)


@pytest.mark.parametrize(
    ("flags", "wording", "ocr"),
    [
        ((), "lmms-eval", False),
        (("--protocol", "lmms-eval"), "lmms-eval", False),
        (("--protocol", "llava"), "llava", False),
        (("--protocol", "llava", "--wording", "lmms-eval", "--ocr"), "lmms-eval", True),
        (("--backbone", "llava-1.5", "--protocol", "published"), "llava", True),
        (("--backbone", "llava-1.5", "--protocol", "published", "--no-ocr"), "llava", False),
        (("--backbone", "llava-next", "--protocol", "published"), "llava", False),
    ],
)
def test_the_flag_protocol_fills_in_what_other_flags_leave_open(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], wording: str, ocr: bool
) -> None:
    manifests: list[Manifest] = []

    def run(manifest: Manifest, *_: Any, **__: Any) -> Outcome:
        manifests.append(manifest)
        return Outcome()

    monkeypatch.setattr(launch, "run", run)
    result = CliRunner().invoke(app, [*COMMAND, *flags])
    assert result.exit_code == 0, result.output
    protocols = [manifest.resolved_protocol() for manifest in manifests]
    assert [(protocol.wording, protocol.ocr) for protocol in protocols] == [(wording, ocr)]


def test_samples_that_no_row_was_asked_are_said_once_a_benchmark() -> None:
    rows = tuple(replace(RECORD, cell_id=str(at), num_samples=1197, num_too_long=3) for at in range(2))
    outcome = Outcome(rows, (replace(RECORD, cell={**RECORD.cell, "task": "gqa"}),))
    lines = messages.format_outcome(outcome, Path("results/a")).splitlines()
    said = "3 of 1,200 samples of POPE are too long for the unpruned toy-llava and are left out of every row."
    assert lines.count(said) == 1
    assert not [line for line in lines if "GQA" in line or "failed" in line]
    assert outcome.is_complete


def test_one_bad_cell_is_not_hidden_by_many_good_ones() -> None:
    good = tuple(replace(RECORD, cell_id=str(number)) for number in range(50))
    assert not Outcome(good, (replace(RECORD, num_failed=3),)).is_complete


def test_the_outcome_says_what_the_cache_saved_and_what_comes_next() -> None:
    counted = Outcome((RECORD,), feature_cache={"hits": 150, "encoded": 50})
    text = messages.format_outcome(counted, Path("results/x"))
    assert "feature cache: 50 images encoded, 150 reused" in text
    assert text.endswith("1 record added to results/x/records.jsonl")
    shard = messages.format_outcome(Outcome(), Path("results/x"), Shard(1, 4))
    assert shard == "shard 1-of-4 is done; after the last one: dpbench merge results/x"
    missing = Outcome(unfinished=(("grid @ 16 on pope", 3, 9),))
    assert not missing.is_complete
    assert "not finished: grid @ 16 on pope, 3 of 9 answered" in messages.format_outcome(missing, Path("x"))


def test_the_command_that_goes_on_is_quoted_and_gets_each_flag_once() -> None:
    assert messages.format_stop(["run", "my grid.yaml"]).endswith(": dpbench run 'my grid.yaml'")
    train = ["train", "--backbone", "toy-llava"]
    assert messages.format_stop(train, ["--resume"]).endswith(": dpbench train --backbone toy-llava --resume")
    assert messages.format_stop([*train, "--resume"], ["--resume"]).count("--resume") == 1


@pytest.mark.parametrize("name", list(registry.methods()))
def test_what_is_known_of_a_method_fits_the_terminal_and_loses_nothing(name: str) -> None:
    lines, whole = (list_details.describe_method(name, width).split("\n\nSource: ")[0] for width in (80, 10_000))
    assert max(map(len, lines.split("\n"))) <= 80
    assert lines.split() == whole.split()


def test_a_command_in_a_list_is_not_broken_inside_a_name() -> None:
    (first, second) = messages.format_columns([("llava-next", f"missing: {'x' * 50} llava-v1.6-vicuna")], 80).split(
        "\n"
    )
    assert first.endswith("x")
    assert second.split() == ["llava-v1.6-vicuna"]
