"""What `dpbench visualize` draws: from flags, or from a manifest."""

from pathlib import Path

from places import PACKAGE
from typer.testing import CliRunner

from dpbench.budget import BudgetRequest
from dpbench.cli import commands
from dpbench.cli.arguments import CellFlags
from dpbench.cli.picture_arguments import read_fields
from dpbench.errors import MissingError


def test_a_manifest_gives_backbone_scorer_budget_and_protocol() -> None:
    fields = read_fields(Path("figure5-kept-tokens"), CellFlags())
    assert fields["backbone"] == "llava-1.5"
    assert fields["budget"] == BudgetRequest(keep=64)
    assert fields["params"]["diffprune"] == {"checkpoint": "scorers/llava-1.5"}
    assert (fields["dtype"], fields["image_aspect"]) == ("float16", "pad")


def test_flags_alone_are_one_picture_of_the_toy() -> None:
    fields = read_fields(None, CellFlags(methods=["grid"], prune_rate=[0.5]))
    assert fields == {"methods": ["grid"], "backbone": "toy-llava", "budget": BudgetRequest(prune_rate=0.5)}


def test_flags_replace_methods_and_budget_of_a_manifest() -> None:
    fields = read_fields(Path("quickstart"), CellFlags(methods=["holov"], keep=[24]))
    assert (fields["methods"], fields["budget"]) == (["holov"], BudgetRequest(keep=24))


def test_a_manifests_scorer_is_the_one_that_draws(tmp_path: Path) -> None:
    manifest = tmp_path / "one.yaml"
    text = "name: one\nbackbone: toy-llava\nmethods: [{name: diffprune, params: {checkpoint: nowhere}}]\n"
    manifest.write_text(text + "budgets: {keep: [16]}\n")
    image, out = PACKAGE.parent / "docs" / "scene.png", tmp_path / "kept.png"
    words = ["visualize", str(image), "--manifest", str(manifest), "--out", str(out)]
    refused = CliRunner().invoke(commands.app, words)
    assert isinstance(refused.exception, MissingError)
    assert "checkpoint=nowhere" in str(refused.exception)
    manifest.write_text(text.replace(", params: {checkpoint: nowhere}", "") + "budgets: {keep: [16]}\n")
    assert CliRunner().invoke(commands.app, words).exit_code == 0
    assert out.is_file()
