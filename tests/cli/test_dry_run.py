"""`dpbench run --dry-run` of a finished run: it lists every cell with its budget and loads no model library."""

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from made_records import make_record, write_run

from dpbench.cli import arguments, plan_arguments
from dpbench.evaluation.plan import Plan, plan
from dpbench.manifest import fingerprint
from dpbench.manifest.reading import load_manifest

MANIFEST = """name: done
backbone: toy-llava
methods: [none, random, {name: cdpruner, params: {relevance: words}}, diffprune]
budgets: {keep: [16, 48]}
tasks: [pope]
protocol: {limit: 3}
"""


def plan_of(path: Path) -> Plan:
    manifest = load_manifest(path)
    return plan(manifest, path.parent / "results", arguments.find_data_root(manifest, None))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return the manifest of a run whose cells all have a record, under results/ beside it."""
    path = tmp_path / "done.yaml"
    path.write_text(MANIFEST)
    cells = plan_of(path).pending
    records = [replace(make_record(cell.method, cell.budget.keep, "pope", 50.0), cell_id=cell.id, cell=cell.to_json())
               for cell in cells]  # fmt: skip
    write_run(tmp_path / "results" / "done", records)
    return path


def test_finished_cells_are_listed_with_parameters_and_budget(finished: Path) -> None:
    manifest, out = load_manifest(finished), finished.parent / "results"
    root = arguments.find_data_root(manifest, None)
    text = plan_arguments.format_estimate(manifest, out, root, [str(finished)], list_cells=True)
    *cells, _, last = text.split("\n")
    assert sorted(line.split("  ")[-1] for line in cells) == [
        "cdpruner[relevance=words] @ 16 on pope", "cdpruner[relevance=words] @ 48 on pope", "diffprune @ 16 on pope",
        "diffprune @ 48 on pope", "none @ all on pope", "random @ 16 on pope", "random @ 48 on pope",
    ]  # fmt: skip
    assert all(line.startswith("done ") for line in cells)
    assert last == f"nothing to run: all 7 cells are done; see: dpbench report {out / 'done'}"


def test_it_loads_no_model_library(finished: Path) -> None:
    """Time is not asserted: what took it was transformers, lmms-eval and the estimate of a model."""
    code = (
        "import sys\nfrom dpbench.cli import commands\nsys.argv = ['dpbench', *sys.argv[1:]]\n"
        "try:\n    commands.main()\nexcept SystemExit as done:\n    print('EXIT', done.code, file=sys.stderr)\n"
        "heavy = ('transformers', 'lmms_eval', 'datasets', 'pandas', 'matplotlib', 'dpbench.engine.answers',\n"
        "         'dpbench.estimate.overview')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(finished), "--dry-run"], cwd=finished.parent, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "nothing to run: all 7 cells are done" in done.stdout
    assert done.stderr == "EXIT 0\nHEAVY []\n"


def test_the_versions_of_packages_are_read_once_a_process(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    fingerprint._versions.cache_clear()
    monkeypatch.setattr(fingerprint, "version", lambda name: read.append(name) or metadata.version(name))
    plan_of(finished)
    assert read == ["torch", "transformers", "lmms-eval"]
