"""A scorer on disk comes back bit for bit, and whatever does not belong together is refused in one sentence."""

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpbench.diffprune import checkpoint
from dpbench.diffprune.checkpoint import Card
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.errors import ConfigError, MissingError

SIZE = ScorerSize(width=24, hidden=16, heads=4, layers=2, ffn=2)
CARD: dict[str, Any] = {
    "backbone": "llava",
    "backbone_weights": "0123456789abcdef",
    "size": SIZE,
    "variant": "gumbel-ste",
    "fill": "mean",
    "keep": "4,8",
    "tau": (1.0, 0.05),
    "data": "toy",
    "seed": 3,
    "step": 600,
    "losses": {"full": 1.25, "hard": 1.5, "hard@4": 1.75},
    "hours": 0.25,
    "versions": {"torch": "2.11"},
}


def scorer(size: ScorerSize = SIZE, seed: int = 0) -> Scorer:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Scorer(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scorer for "llava", as a training leaves it."""
    checkpoint.save(tmp_path / "a" / "scorer", scorer(), Card(**CARD))
    return tmp_path / "a" / "scorer"


def load(folder: Path, backbone: str = "llava", width: int = 24) -> Callable[[], Scorer]:
    return lambda: checkpoint.load(folder, backbone, width)


def refused(run: Callable[[], object], error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as raised:
        run()
    message = str(raised.value)
    assert "\n" not in message
    return message


def rewrite(folder: Path, **changes: object) -> None:
    """Change fields of a card; those set to None are left out."""
    stored = json.loads((folder / "card.json").read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in stored.items() if value is not None}
    (folder / "card.json").write_text(json.dumps(kept), encoding="utf-8")


def resave(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other weights, and their hash into the card."""
    save_file(tensors, folder / "scorer.safetensors", {"size": json.dumps(asdict(SIZE))})
    rewrite(folder, sha256=sha256((folder / "scorer.safetensors").read_bytes()).hexdigest())


def test_a_scorer_comes_back_bit_for_bit(folder: Path) -> None:
    back, wanted = load(folder)(), scorer().state_dict()
    assert back.size == SIZE
    assert back.state_dict().keys() == wanted.keys()
    for name, tensor in back.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name]), name


def test_the_card_says_what_it_was_given_and_the_hash_of_the_weights(folder: Path) -> None:
    stored = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    digest = sha256((folder / "scorer.safetensors").read_bytes()).hexdigest()
    size = {"width": 24, "hidden": 16, "heads": 4, "layers": 2, "ffn": 2}
    assert stored == {"format": 1, **CARD, "size": size, "tau": [1.0, 0.05], "sha256": digest}
    assert checkpoint.read_card(folder, "llava") == Card(**CARD, sha256=digest)


def test_there_are_two_files_and_neither_is_a_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "scorer.safetensors"]
    content = (folder / "scorer.safetensors").read_bytes()
    assert content[8:9] == b"{"
    assert 8 + int.from_bytes(content[:8], "little") + sum(4 * p.numel() for p in scorer().parameters()) == len(content)
    with safe_open(folder / "scorer.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(scorer().state_dict())


def test_a_better_scorer_replaces_the_one_before(folder: Path) -> None:
    better = scorer(seed=1)
    checkpoint.save(folder, better, Card(**CARD | {"step": 700}))
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "scorer.safetensors"]
    assert checkpoint.read_card(folder, "llava").step == 700
    assert torch.equal(load(folder)().head.weight, better.head.weight)


def test_saving_leaves_the_scorer_as_it_was(tmp_path: Path) -> None:
    trained = scorer().double()
    trained.head.weight.grad = torch.ones_like(trained.head.weight)
    checkpoint.save(tmp_path, trained, Card(**CARD))
    assert trained.head.weight.dtype == torch.float64
    assert trained.head.weight.requires_grad
    assert (trained.head.weight.grad == 1).all()
    assert load(tmp_path)().head.weight.dtype == torch.float32


@pytest.mark.parametrize("at", [0, 9, -1])
def test_tampered_weights_are_refused(folder: Path, at: int) -> None:
    content = bytearray((folder / "scorer.safetensors").read_bytes())
    content[at] ^= 1
    (folder / "scorer.safetensors").write_bytes(content)
    said = refused(load(folder))
    assert said == (
        f"{folder}: scorer.safetensors is not the file that card.json describes; copy both again, or train again"
    )


def test_weights_of_another_shape_or_names_are_refused(folder: Path) -> None:
    resave(folder, dict(scorer(ScorerSize(width=24, hidden=32, heads=4, ffn=2)).state_dict()))
    assert "does not hold the scorer of its card: Error(s) in loading state_dict" in refused(load(folder))
    resave(folder, {name: tensor for name, tensor in scorer().state_dict().items() if name != "head.bias"})
    assert "does not hold the scorer of its card" in refused(load(folder))
    resave(folder, {**scorer().state_dict(), "more": torch.zeros(1)})
    assert "does not hold the scorer of its card" in refused(load(folder))


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    torch.save(dict(scorer().state_dict()), folder / "scorer.safetensors")
    rewrite(folder, sha256=sha256((folder / "scorer.safetensors").read_bytes()).hexdigest())
    said = refused(load(folder))
    assert said.startswith(f"{folder / 'scorer.safetensors'} does not hold the scorer of its card: ")
    assert said.endswith("; train again")


def test_another_backbone_is_refused(folder: Path) -> None:
    assert refused(load(folder, "qwen2.5-vl")) == (
        f"{folder}: this scorer was trained for llava, not for qwen2.5-vl; train one with: "
        "dpbench train --backbone qwen2.5-vl --out scorers/qwen2.5-vl"
    )


def test_another_width_is_refused(folder: Path) -> None:
    assert refused(load(folder, width=32)) == (
        f"{folder}: this scorer reads tokens of width 24, the llava loaded here has 32; train one on these weights"
    )


@pytest.mark.parametrize(
    "changes",
    [{"step": None}, {"size": None}, {"foreign": 1}, {"format": 2}, {"step": "many"}, {"tau": [1.0]}, {"size": {}}],
    ids=str,
)
def test_a_card_of_another_form_is_refused(folder: Path, changes: dict[str, object]) -> None:
    rewrite(folder, **changes)
    said = refused(lambda: checkpoint.read_card(folder, "llava"))
    assert said.startswith(f"{folder / 'card.json'} is not a scorer's card (")
    assert said.endswith("); copy it again, or train again")
    assert refused(load(folder)) == said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"])
def test_a_card_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    assert refused(load(folder)).startswith(f"{folder / 'card.json'} is not a scorer's card (")


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (["card.json"], "card.json"),
        (["scorer.safetensors"], "scorer.safetensors"),
        (["card.json", "scorer.safetensors"], "scorer.safetensors and card.json"),
    ],
)
def test_missing_files_are_named(folder: Path, absent: list[str], said: str) -> None:
    assert checkpoint.find(str(folder), "llava") == folder
    for name in absent:
        (folder / name).unlink()
    assert refused(lambda: checkpoint.find(str(folder), "llava"), MissingError) == (
        f"--param checkpoint={folder}: {folder} lacks {said}; give a folder that "
        "`dpbench train --backbone llava --out` wrote"
    )


def test_a_folder_in_the_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert checkpoint.find("~/scorer", "llava") == folder


def test_where_no_scorer_ships_the_training_command_is_said() -> None:
    assert refused(lambda: checkpoint.find(None, "my-llava"), MissingError) == (
        "--method diffprune: no scorer for my-llava ships with dpbench; train one with: dpbench train --backbone "
        "my-llava --out scorers/my-llava, then add --param checkpoint=scorers/my-llava"
    )


def test_a_shipped_scorer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "files", lambda package: tmp_path / package)
    shipped = tmp_path / "dpbench" / "diffprune" / "scorers" / "llava"
    checkpoint.save(shipped, scorer(), Card(**CARD))
    assert checkpoint.find(None, "llava") == shipped
    assert load(shipped)().size == SIZE


def test_a_loaded_scorer_does_not_hold_on_to_its_file(folder: Path) -> None:
    back = load(folder)()
    resave(
        folder, {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "scorer.safetensors").items()}
    )
    assert torch.equal(back.head.weight, scorer().head.weight)


@pytest.mark.parametrize("change", [{"heads": 7}, {"heads": 0}, {"hidden": -4}, {"heads": 2}])
def test_a_card_with_the_size_of_another_scorer_is_refused(folder: Path, change: dict[str, int]) -> None:
    rewrite(folder, size=asdict(SIZE) | change)
    refused(load(folder))
