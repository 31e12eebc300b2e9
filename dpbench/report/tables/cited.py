"""The systems whose published figures are cited and which are not run here (`manifests/paper/cited.yaml`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class Cited:
    """One such system.

    Attributes:
        paper: where it was published.
        reason: why it is not run.
    """

    paper: str
    reason: str


def load_cited() -> Mapping[str, Cited]:
    """Return them by name, in the file's order: from the wheel, or from a source checkout."""
    package = Path(str(files("dpbench")))
    inside = package / "manifests"
    path = (inside if inside.is_dir() else package.parent / "manifests") / "paper" / "cited.yaml"
    stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: Cited(**fields) for name, fields in stored.items()}
