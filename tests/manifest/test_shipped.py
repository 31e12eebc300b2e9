"""The shipped manifests: their documented commands, their seeds, and a run of each table's on miniature weights."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from cards import bare_card
from huggingface_hub import HfApi, constants
from PIL import Image
from places import TOY_DATA
from typer.testing import CliRunner

from dpbench import backbones
from dpbench.backbones import miniatures
from dpbench.cli import commands, messages
from dpbench.diffprune import checkpoint
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.errors import MissingError
from dpbench.estimate.steps import list_items, missing_commands
from dpbench.evaluation import runner
from dpbench.manifest.reading import load_manifest, make_manifest, shipped
from dpbench.storage.record import Record, read

PAPER = [name for name in shipped() if name.startswith(("table", "figure"))]
DRAWING = {"random", "prunesid", "sparsevlm"}
"""Methods that read the generator they are given: the only source of randomness that the contract allows."""
MINIATURE_OF = {"llava": "llava", "llava_next": "llava_next", "qwen2_5_vl": "qwen2_5_vl"}


def documented(name: str) -> list[str]:
    """Return the commands in a manifest's comment."""
    lines = shipped()[name].read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]


COMMANDS = dict.fromkeys(
    command
    for name in PAPER
    for command in documented(name)
    if command.startswith("dpbench") and not command.startswith("dpbench plan")  # those run in tests/estimate
)


@pytest.fixture
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without files, an empty cache of the hub, and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(HfApi, "dataset_info", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("DPBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("IMAGE.jpg")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("nothing_there")
def test_a_documented_command_runs_as_far_as_what_is_missing(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that does not exist is exit code 2 without a sentence of ours, a wrong value a ConfigError."""
    program, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [program, *words])
    if "random" in words:  # a full-size model: here, its shapes alone
        words = [*(word for word in words if word not in ("--weights", "random")), "--flops-only"]
    result = CliRunner().invoke(commands.app, words)
    missing = isinstance(result.exception, MissingError) or "there is no folder" in str(result.exception)
    assert result.exit_code == 0 or missing, f"{command}: {result.output} {result.exception!r}"


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.usefixtures("nothing_there")
def test_the_documented_steps_are_those_that_a_plan_finds_missing(name: str) -> None:
    manifest, listed = load_manifest(Path(name)), documented(name)
    if not any(command.startswith("dpbench run") for command in listed):
        return  # a profile or a picture needs less
    needed = [command.split(" --out ")[0] for command in missing_commands(list_items(manifest, None))]
    start = 1 if listed[0].startswith("dpbench plan") else 0
    assert [set(shlex.split(command)) for command in listed[start:-2]] == [set(shlex.split(one)) for one in needed]
    assert listed[start - 1] == f"dpbench plan {name}"
    assert listed[-2] == f"dpbench run {name}"
    assert listed[-1].startswith(f"dpbench report results/{name}")


@pytest.mark.parametrize("name", list(shipped()))
def test_the_first_line_of_a_manifest_is_whole_since_the_list_shows_it_alone(name: str) -> None:
    assert messages.read_first_comment(shipped()[name]).endswith(".")


@pytest.mark.parametrize("name", PAPER)
def test_a_manifest_says_in_one_line_what_it_is_and_follows_the_papers_protocol(name: str) -> None:
    assert "DiffPrune paper" in messages.read_first_comment(shipped()[name]) or name == "table1-lite"
    manifest = load_manifest(Path(name))
    assert manifest.protocol.preset == "published"
    for part in manifest.parts():
        tables = {1: "float16", 2: "float16", 3: "bfloat16"}
        assert part.resolved_protocol().dtype == tables[backbones.find(part.backbone.name).paper_table or 0]


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("table") and "lite" not in name])
def test_methods_that_draw_have_three_seeds_in_a_table(name: str) -> None:
    manifest = load_manifest(Path(name))
    if name == "table4-efficiency":
        return  # a profile draws once
    for method in manifest.methods:
        assert len(method.seeds or [0]) == (3 if method.name in DRAWING else 1), method.name


def write_weights(name: str, cache: Path) -> None:
    """Lay a miniature of a backbone's family out as the hub's cache does."""
    family = backbones.find(name)
    kind, folder = family.module.split(":")[0], cache / f"models--{family.weights.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    miniatures.model(MINIATURE_OF[kind], torch.float32).save_pretrained(snapshot)
    miniatures.processor(MINIATURE_OF[kind]).save_pretrained(snapshot)


def write_scorers(name: str) -> None:
    """Write the scorers that a manifest reads, with random weights, where its parameters say."""
    manifest = load_manifest(Path(name))
    for part in manifest.parts():
        for method in part.methods:
            if folder := method.params_on(part.backbone.name).get("checkpoint"):
                size = ScorerSize(width=32, hidden=16, heads=2)
                checkpoint.save(Path(folder), Scorer(size), bare_card(part.backbone.name, size))


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "hub"
    shutil.rmtree(tmp_path / "hub", ignore_errors=True)


RUN = [name for name in PAPER if any("dpbench run" in command for command in documented(name))]
SLOW = ("table1-llava-1.5-full",)
"""The methods and tasks of the others on the same backbone, all at once."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RUN])
def test_a_tables_manifest_runs_on_miniature_weights(name: str, miniature: Path) -> None:
    """Every method, backbone and seed, at a budget that the few layers can meet, on one sample of the first task."""
    loaded = load_manifest(Path(name))
    for part in loaded.parts():
        write_weights(part.backbone.name, miniature)
    write_scorers(name)
    data = loaded.model_dump(exclude_none=True)
    num_visual = {"llava": 16, "llava_next": 80}.get(backbones.find(loaded.backbone.name).module.split(":")[0])
    budgets = {"keep": [num_visual // 2]} if num_visual else {"prune_rate": [0.5]}
    for method in data["methods"]:
        if method["name"] == "cdpruner":
            method["params"] = {"relevance": "words"}  # the default reads a CLIP model of another repository
    data |= {"tasks": loaded.tasks[:1], "budgets": budgets}
    data["protocol"] |= {"limit": 1, "dtype": "float32"}
    small = make_manifest(data, source=name)
    outcome = runner.run(small, Path("results"), TOY_DATA, device="cpu")
    assert [(one.cell.label, one.reason) for one in outcome.failed] == []
    records = read(Path("results") / name / "records.jsonl", Record)
    num_cells = sum(len(method.seeds or [0]) for method in small.methods) * len(small.parts())
    assert len(records) == num_cells
    assert {record.num_failed for record in records} == {0}
    assert {record.cell["backbone"] for record in records} == {part.backbone.name for part in small.parts()}
