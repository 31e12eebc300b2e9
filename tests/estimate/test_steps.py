"""What is missing, and the commands that get it, in order."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from places import TOY_DATA

from dpbench.estimate.steps import list_items, missing_commands, train_command
from dpbench.manifest.reading import load_manifest, make_manifest


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


DATA = "--data visual-layer/imagenet-1k-vl-enriched --param fraction=0.1"


def test_the_steps_of_several_backbones_are_in_order() -> None:
    items = list_items(load_manifest(Path("figure-a1-scales")), None)
    names = ("qwen2.5-vl-3b", "qwen2.5-vl", "qwen2.5-vl-32b")
    assert missing_commands(items) == [
        *(f"hf download Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B")),
        "dpbench data pull mme scienceqa mmbench_en",
        *(f"dpbench train --backbone {name} {DATA} --out scorers/{name}" for name in names),
    ]
    assert [item.megabytes for item in items[:3]] == [7600, 16600, 67000]


def test_data_is_pulled_to_the_data_root_and_what_is_there_is_not(tmp_path: Path) -> None:
    root = tmp_path / "a root"
    (root / "POPE").mkdir(parents=True)
    (root / "POPE" / "data").symlink_to(TOY_DATA / "POPE" / "data")
    data = {"name": "two", "backbone": "toy-llava", "methods": ["none"], "tasks": ["pope", "gqa", "mme"]}
    items = list_items(make_manifest(data, source="test"), root)
    assert [item.is_there for item in items] == [True, True, False, False]
    assert missing_commands(items) == [f"dpbench data pull gqa mme --to '{root}'"]


def test_other_weights_are_of_unknown_size_and_keep_their_revision() -> None:
    backbone = {"name": "llava-1.5", "weights": "some/where", "revision": "abc"}
    data = {"name": "other", "backbone": backbone, "methods": ["none"], "tasks": ["pope"]}
    weights, _ = list_items(make_manifest(data, source="test"), None)
    assert (weights.megabytes, weights.command) == (None, "hf download some/where --revision abc")


def test_a_model_that_a_method_reads_is_a_download() -> None:
    data = {
        "name": "clip",
        "backbone": "llava-1.5",
        "methods": ["cdpruner"],
        "budgets": {"keep": [64]},
        "tasks": ["pope"],
    }
    commands = missing_commands(list_items(make_manifest(data, source="test"), None))
    assert commands[1] == "hf download openai/clip-vit-large-patch14-336"


@pytest.mark.parametrize(
    ("backbone", "checkpoint", "words"),
    [
        ("llava-1.5", "scorers/llava-1.5", ""),
        ("llava-1.5", "scorers/llava-1.5-gumbel-ste", " --variant gumbel-ste"),
        ("toy-llava", "scorers/ablation/global-denoiser-2", " --variant global-denoiser --seed 2"),
        ("toy-llava", "scorers/ablation/gumbel-ste-mean-4", " --variant gumbel-ste --param fill=mean --seed 4"),
    ],
)
def test_a_scorers_folder_says_how_it_is_trained(backbone: str, checkpoint: str, words: str) -> None:
    data = "" if backbone == "toy-llava" else f" {DATA}"
    expected = f"dpbench train --backbone {backbone}{words}{data} --out {checkpoint}"
    assert train_command(backbone, checkpoint) == expected


def test_sizes_are_of_splits_that_benchmarks_read_and_have_a_source() -> None:
    folder = files("dpbench.tasks.data")
    sizes, expected = (
        yaml.safe_load((folder / name).read_text(encoding="utf-8")) for name in ("sizes.yaml", "expected.yaml")
    )
    assert set(sizes) <= set(expected["columns"])
    assert all(one["megabytes"] > 0 and "file page" in one["source"] for one in sizes.values())
