"""The command line that regenerates a recorded cell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dpbench import backbones
from dpbench.manifest.schema import Protocol

_FLAGS = ("limit", "dtype", "attention", "prompt", "anyres", "newline", "min_pixels", "max_pixels")
_PLACEMENT = ("weights", "revision", "quantize")


def command(cell: Mapping[str, Any], folder: Path) -> str:
    """Return what to type to run one cell again.

    Args:
        cell: as in its record.
        folder: the run folder, whose manifest is named where flags cannot say it: OCR tokens, other seeds than 0.
    """
    if cell["ocr"] or cell["seed"]:
        words = ["dpbench", "run", str(folder / "manifest.yaml"), "--tasks", cell["task"]]
    else:
        words = ["dpbench", "run", *_words(cell)]
    return shlex.join(words)


def _words(cell: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--method", cell["method"])
    for name, value in cell["params"].items():
        yield from ("--param", f"{name}={_yaml(value)}")
    yield from ("--backbone", cell["backbone"])
    for name in ("keep", "prune_rate"):
        if cell[name] is not None:
            yield from (_flag(name), str(cell[name]))
    if cell["budget_kind"] != "mean":
        yield from ("--budget-kind", cell["budget_kind"])
    yield from ("--tasks", cell["task"])
    for name in _PLACEMENT:
        if cell[name] is not None:
            yield from (_flag(name), str(cell[name]))
    usual = {name: Protocol.model_fields[name].default for name in _FLAGS}
    usual["prompt"] = backbones.find(cell["backbone"]).prompt
    for name in _FLAGS:
        if cell[name] != usual[name]:
            yield from (_flag(name), str(cell[name]))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _yaml(value: Any) -> str:
    """Return a parameter as `--param` reads it back."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
