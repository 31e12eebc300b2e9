"""`dpbench run`: what flags make of a manifest, what is said at the end, and the exit code."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from places import PACKAGE
from typer.testing import CliRunner

from dpbench.cli import arguments as flags
from dpbench.cli.commands import app
from dpbench.errors import ConfigError
from dpbench.evaluation import merging
from dpbench.evaluation.plan import Outcome
from dpbench.evaluation.sharding import Shard
from dpbench.storage.record import Record

RECORD = Record(
    cell_id="abc",
    cell={"method": "grid", "task": "pope"},
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


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("500MB", 500_000_000), ("0", 0), ("1.5 KiB", 1536), ("12", 12)]
)
def test_sizes(text: str, size: int) -> None:
    assert flags.num_bytes(text) == size


def test_a_size_that_is_none_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--feature-cache: 'much' is no size; give one as 4GiB, 500MB or 0"):
        flags.num_bytes("much")


@pytest.mark.parametrize(("failed", "fails"), [(0, False), (2, False), (3, True)])
def test_more_than_one_percent_without_an_answer_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, failed: int, fails: bool
) -> None:
    outcome = Outcome((replace(RECORD, num_failed=failed),))
    assert outcome.failed == fails
    monkeypatch.setattr(merging, "run", lambda *_, **__: outcome)
    done = CliRunner().invoke(
        app, ["run", "--method", "grid", "--keep", "16", "--backbone", "toy-llava", "--tasks", "pope"]
    )
    assert done.exit_code == int(fails)
    assert (f"{failed} of 200 samples failed: grid on pope" in done.output) == bool(failed)


def test_one_bad_cell_is_not_hidden_by_many_good_ones() -> None:
    good = tuple(replace(RECORD, cell_id=str(n)) for n in range(50))
    assert Outcome(good, (replace(RECORD, num_failed=3),)).failed


def test_the_summary_says_what_the_cache_saved_and_what_comes_next() -> None:
    counted = Outcome((RECORD,), feature_cache={"hits": 150, "encoded": 50})
    text = flags.summary(counted, Path("results/x"))
    assert "feature cache: 50 images encoded, 150 times found again" in text
    assert text.endswith("1 records added; see: dpbench report --run results/x")
    shard = flags.summary(Outcome(), Path("results/x"), Shard(1, 4))
    assert shard == "shard 1-of-4 is done; once all are: dpbench merge results/x"
    missing = Outcome(unfinished=(("grid @ 16 on pope", 3, 9),))
    assert missing.failed
    assert "not finished: grid @ 16 on pope, 3 of 9 answered" in flags.summary(missing, Path("x"))


def test_a_manifest_runs_on_another_backbone_with_the_same_shares() -> None:
    path = Path("table1-llava-1.5")
    own, toy = (flags.manifest(path, flags.Flags(backbone=name)) for name in (None, "toy-llava"))
    assert (own.backbone.name, own.budgets and own.budgets.keep) == ("llava-1.5", [192, 128, 64])
    assert (toy.backbone.name, toy.budgets and toy.budgets.keep) == ("toy-llava", [48, 32, 16])
    assert [each.params for each in own.methods if each.name == "diffprune"] == [{"checkpoint": "scorers/llava-1.5"}]
    assert [each.params for each in toy.methods if each.name == "diffprune"] == [{}]
    assert flags.manifest(path, flags.Flags(backbone="llava-1.5")) == own


@pytest.mark.parametrize("what", ["batch", "--help"])
def test_the_throughput_of_random_weights_needs_no_lmms_eval(what: str) -> None:
    code = (
        "import runpy, sys\nsys.modules['lmms_eval'] = sys.modules['datasets'] = None\n"
        "sys.argv = sys.argv[1:]\nsys.path.insert(0, 'benchmarks')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = PACKAGE.parent / "benchmarks" / "throughput.py"
    arguments = [what, "--samples", "4", "--questions", "2", "--max-new-tokens", "2", "--size", "96x96"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("questions per image" in done.stdout) == (what == "batch")
