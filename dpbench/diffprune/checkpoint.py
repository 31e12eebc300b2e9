"""A trained scorer on disk: `scorer.safetensors`, and `card.json`, which records how it was trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dpbench.diffprune.recipe import Fill
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.errors import ConfigError, MissingError

WEIGHTS, CARD = "scorer.safetensors", "card.json"
STEPS = "steps"
"""In the folder of a training: the scorer of every validation, by its step, where the recipe keeps them."""


class Card(BaseModel):
    """How a scorer was trained.

    Attributes:
        backbone: as on the command line; the scorer works with this one only.
        backbone_weights: hash of the backbone's weights it was trained on.
        size: shape of the scorer.
        variant: throttler and denoiser it was trained with.
        fill: what stood in for dropped tokens; of the straight-through variants only.
        keep: budgets it was trained for.
        tau: temperature at the first and the last step, in units of the logits.
        data: image-caption pairs it was trained on.
        seed: of weights, data order and noise.
        step: training step of these weights.
        losses: validation losses per caption token, of the unpruned backbone ("full") and under hard top-k ("hard").
        hours: training time up to these weights.
        versions: of the libraries.
        sha256: of the weights file.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    backbone: str
    backbone_weights: str
    size: ScorerSize
    variant: str
    fill: Fill = "zero"
    keep: str
    tau: tuple[float, float]
    data: str
    seed: int
    step: int
    losses: dict[str, float]
    hours: float
    versions: dict[str, str]
    sha256: str = ""


def save(folder: Path, scorer: Scorer, card: Card) -> None:
    """Write a scorer. Each file is replaced as a whole; the card is written last and holds the weights' hash."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.part"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in scorer.state_dict().items()}
    save_file(tensors, partial, {"size": json.dumps(asdict(scorer.size))})
    card = card.model_copy(update={"sha256": sha256(partial.read_bytes()).hexdigest()})
    partial.replace(folder / WEIGHTS)
    partial_card = folder / f"{CARD}.part"
    partial_card.write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial_card.replace(folder / CARD)


def list_steps(folder: Path) -> list[Path]:
    """Return the folders of the scorers that a training kept along its way, by step; else the folder itself."""
    steps = [path.parent for path in (folder / STEPS).glob(f"*/{CARD}") if path.parent.name.isdecimal()]
    return sorted(steps, key=lambda path: int(path.name)) or [folder]


def find(checkpoint: str | None, backbone: str) -> Path:
    """Return the folder of a scorer: the one the user named, or the one that ships with dpbench for a backbone.

    Raises:
        MissingError: there is no scorer.
    """
    if checkpoint is None:
        shipped = Path(str(files("dpbench"))) / "diffprune" / "scorers" / backbone
        if not (shipped / CARD).is_file():
            raise MissingError(
                f"--method diffprune: no scorer for {backbone} ships with dpbench; train one with: dpbench train "
                f"--backbone {backbone} --out scorers/{backbone}, then add --param checkpoint=scorers/{backbone}"
            )
        return shipped
    folder = Path(checkpoint).expanduser()
    missing = [name for name in (WEIGHTS, CARD) if not (folder / name).is_file()]
    if missing:
        raise MissingError(
            f"--param checkpoint={checkpoint}: {folder} lacks {' and '.join(missing)}; give a folder that "
            f"`dpbench train --backbone {backbone} --out` wrote"
        )
    return folder


def read_card(folder: Path, backbone: str) -> Card:
    """Return a scorer's card.

    Raises:
        ConfigError: it cannot be read, or the scorer was trained for another backbone.
    """
    try:
        card = Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not UTF-8 text"
        raise ConfigError(f"{folder / CARD} is not a scorer's card ({reason}); copy it again, or train again") from None
    if card.backbone != backbone:
        raise ConfigError(
            f"{folder}: this scorer was trained for {card.backbone}, not for {backbone}; train one with: "
            f"dpbench train --backbone {backbone} --out scorers/{backbone}"
        )
    return card


def check_pair(folder: Path, card: Card) -> None:
    """Refuse weights that do not belong to the card.

    Raises:
        ConfigError: the hash differs.
    """
    if sha256((folder / WEIGHTS).read_bytes()).hexdigest() != card.sha256:
        raise ConfigError(f"{folder}: {WEIGHTS} is not the file that {CARD} describes; copy both again, or train again")


def load(folder: Path, backbone: str, width: int) -> Scorer:
    """Load a trained scorer on the CPU, in float32.

    Args:
        folder: from `find`.
        backbone: the name of the backbone it will serve.
        width: D of that backbone.

    Raises:
        ConfigError: the scorer is for another backbone or width, or its files do not belong together.
    """
    card = read_card(folder, backbone)
    if card.size.width != width:
        raise ConfigError(
            f"{folder}: this scorer reads tokens of width {card.size.width}, the {backbone} loaded here has "
            f"{width}; train one on these weights"
        )
    check_pair(folder, card)
    path = folder / WEIGHTS
    try:
        if _stored_size(path) != asdict(card.size):
            raise ConfigError(f"{path} does not hold the scorer of its card: the size differs; train again")
        scorer = Scorer(card.size)
        scorer.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} does not hold the scorer of its card: {reason}; train again") from None
    return scorer


def _stored_size(path: Path) -> dict[str, int]:
    """Return the scorer's shape from the header of a weights file; the hash in the card covers the header."""
    with safe_open(path, "pt") as file:
        size: dict[str, int] = json.loads((file.metadata() or {}).get("size", "{}"))
    return size
