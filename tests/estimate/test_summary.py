"""What `dpbench plan` and a dry run print, on a machine with nothing and on one with everything."""

import shlex
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from places import TOY_DATA
from typer.testing import CliRunner

from dpbench.cli import commands
from dpbench.estimate import measuring
from dpbench.estimate.shapes import load_shapes
from dpbench.manifest.reading import load_manifest, make_manifest, shipped
from dpbench.report.terminal.shell import wrap_command


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("DPBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def printed(*words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["dpbench", *words])
    result = CliRunner().invoke(commands.app, words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_manifest_is_planned_in_80_columns_with_nothing_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed("plan", name, monkeypatch=monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    parts = {
        "run": ("cells", "answers", "Time:", f"dpbench run {name}", f"report results/{name}"),
        "profile": ("No questions are asked", f"dpbench profile {name} --weights random", f"report results/{name}"),
        "visualize": ("No questions are asked", f"dpbench visualize IMAGE.jpg --manifest {name} --out", "hf download"),
    }
    for part in ("Memory:", "Steps:", *parts[load_manifest(Path(name)).purpose]):
        assert part in text, part
    assert "refused" not in text


def test_a_dry_run_prints_the_same_and_needs_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("table1-lite", "--tasks", "pope", "--limit", "90")
    planned, dry = (
        printed("plan", *words, monkeypatch=monkeypatch),
        printed("run", *words, "--dry-run", monkeypatch=monkeypatch),
    )
    assert dry == f"table1-lite with tasks: pope; limit: 90\n{planned}"
    assert "  dpbench run table1-lite --tasks pope --limit 90\n" in planned
    assert "llava-hf/llava-1.5-7b-hf  14.2 GB     missing" in planned


def test_what_is_done_is_known_where_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("run", "quickstart", "--tasks", "pope", "--dry-run", monkeypatch=monkeypatch)
    assert "4 cells to run, 0 done, in results/quickstart" in text.replace("\n  ", " ")
    assert text.count("\nrun    ") + text.startswith("run    ") == 4
    assert "missing" not in text
    assert "Weights and data are here: nothing to fetch." in text
    assert "\nrun    " not in printed("plan", "quickstart", "--tasks", "pope", monkeypatch=monkeypatch)


def test_a_budget_that_a_method_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "name: few\nbackbone: llava-1.5\nmethods: [none, dart]\nbudgets: {keep: [8, 64]}\ntasks: [pope]\n"
    Path("few.yaml").write_text(text)
    text = printed("plan", "few.yaml", "--data-root", str(TOY_DATA), monkeypatch=monkeypatch)
    assert "refused: dart @ 8: dart: cannot reach a mean of 8" in text
    assert "dart @ 64" not in text


def test_a_long_command_is_continued_and_stays_the_same_command() -> None:
    command = f"dpbench run a --out '{'long name ' * 6}' --tasks {','.join(['pope'] * 12)} --limit 30"
    text = wrap_command(command, 60)
    assert len(text.splitlines()) > 2
    assert all(line.endswith(" \\") for line in text.splitlines()[:-1])
    assert shlex.split(text.replace("\\\n", "")) == shlex.split(command)


def test_rates_are_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"name": "few", "backbone": "toy-llava", "methods": ["none", "grid", "downsample"], "tasks": ["pope"]}
    part = make_manifest({**data, "budgets": {"keep": [16, 32]}, "protocol": {"batch_size": 2}}, source="test")
    rate = measuring.measure_rate(part, load_shapes(part), "cpu")
    assert rate.source == "measured in batches of 2, its own weights"
    assert set(rate.reduce_ms) >= {"none", "grid", "downsample"}
    assert min(rate.image_flops_per_s, rate.prefill_flops_per_s, rate.splice_ms, rate.decode_ms) > 0
    assert not rate.is_gpu_profile


def test_a_method_that_the_time_does_not_reach_keeps_its_committed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    part = load_manifest(Path("quickstart"))
    rate = measuring.measure_rate(part, load_shapes(part), "cpu")
    assert "not measured: random, holov, diffprune" in rate.source
