"""Format one entry of `dpbench list`, in full: a method, backbone, benchmark or manifest. No torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from dpbench import backbones, registry, tasks
from dpbench.cli.messages import hanging
from dpbench.errors import ConfigError, MissingError, did_you_mean
from dpbench.manifest.reading import load_manifest, shipped
from dpbench.tasks.data.root import is_present

OWN_DATA = "toy-llava brings its own weights and benchmark data: it needs no download."


def describe_method(name: str, width: int) -> str:
    """Return a method's class documentation, read from its source, and where that is."""
    path = registry.source_path(name)
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    wanted = registry.methods()[name].attr
    classes = (node for node in nodes if isinstance(node, ast.ClassDef) and node.name == wanted)
    text = next((ast.get_docstring(node) or "" for node in classes), "")
    return "\n".join(_fill_lines(f"{name}: {text}\n\nSource: {path}", width))


def _fill_lines(text: str, width: int) -> Iterator[str]:
    """Yield the paragraphs of a documentation, filled anew; a line that is indented continues the one before."""
    for paragraph in re.sub(r"\n +", " ", text).split("\n"):
        yield hanging("", paragraph, 4, width)


def describe_backbone(name: str, width: int) -> str:
    """Return what is known of a backbone without loading it, and whether its weights are here."""
    family = backbones.find(name)
    try:
        place = f"found in {backbones.locate(name)}"
    except MissingError as error:
        place = str(error)
    rows = {
        "what": family.summary,
        "parameters": family.parameters,
        "visual tokens": family.visual,
        "default weights": family.weights,
        "weights": place,
        "signals of the tower": family.signals,
        "prompt": family.prompt,
    } | ({"data": OWN_DATA} if name == "toy-llava" else {})
    return _format(name, rows.items(), width)


def describe_task(name: str, data_root: Path | None, width: int) -> str:
    """Return a benchmark's data, size and metric, and what its score may be compared to."""
    task = tasks.find(name)
    there = "found" if is_present(name, data_root) else f"missing; fetch it with: dpbench data pull {name}"
    rows = {
        "data set": f"{task.repository}, {task.config}, split {task.split}",
        "data": f"{there}; {OWN_DATA}",
        "asked": f"{task.num_asked:,} questions" + (f" on {task.num_images:,} images" if task.num_images else ""),
        "metric": f"{task.measure}, {task.scale}",
        "compare to": task.protocol,
    } | ({"variant of": task.variant_of} if task.variant_of else {})
    return _format(f"{name} ({task.title})", rows.items(), width)


def describe_manifest(name: str, width: int) -> str:
    """Return a shipped manifest's opening comment, and what it compares.

    Raises:
        ConfigError: no manifest of that name is shipped.
    """
    if name not in shipped():
        raise ConfigError(f"there is no shipped manifest {name!r}; {did_you_mean(name, shipped())}")
    path = shipped()[name]
    opening = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    manifest = load_manifest(path)
    budgets = manifest.budgets.model_dump(exclude_none=True) if manifest.budgets else {}
    rows = {
        "about": " ".join(line.lstrip("# ") for line in opening),
        "backbones": ", ".join(entry.name for entry in (manifest.backbone, *manifest.more_backbones)),
        "methods": ", ".join(dict.fromkeys(entry.name for entry in manifest.methods)),
        "budgets": "; ".join(f"{key} {_join(value)}" for key, value in budgets.items()),
        "tasks": ", ".join(manifest.tasks),
        "file": str(path),
        "see also": f"dpbench {manifest.purpose} {name}" + (" --dry-run" if manifest.purpose == "run" else ""),
    }
    return _format(name, rows.items(), width)


def _join(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _format(name: str, rows: Iterable[tuple[str, str]], width: int) -> str:
    """Return a name and its facts, each wrapped beside its heading; what fits on no line is not broken."""
    rows = [(head, text) for head, text in rows if text]
    column = max(len(head) for head, _ in rows) + 4
    return "\n".join([name, *(hanging(f"  {head}".ljust(column), text, column, width) for head, text in rows)])
