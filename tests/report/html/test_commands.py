"""A record's command, read as the command line reads it, is the record's cell again."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpbench.cli import commands, plan_arguments
from dpbench.manifest.cell import PROTOCOL_FIELDS, WEIGHTS_FIELDS, cells
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import BackboneEntry, Manifest, Protocol
from dpbench.report.html.commands import command

RANDOM = {"methods": ["random"], "budgets": {"keep": [16]}}
CASES: dict[str, dict[str, Any]] = {
    "the unpruned model": {"methods": ["none"]},
    "a count": {"methods": ["grid"], "budgets": {"keep": [16]}},
    "a rate": {"methods": ["grid"], "budgets": {"prune_rate": [0.889]}},
    "a rate with all its digits": {"methods": ["grid"], "budgets": {"prune_rate": [0.1 + 0.2]}},
    "a final budget": {"methods": ["fastv"], "budgets": {"keep": [32], "kind": "final"}},
    "a whole number": {"methods": [{"name": "fastv", "params": {"layer": 2}}], "budgets": {"keep": [32]}},
    "a fraction": {"methods": [{"name": "holov", "params": {"eps": 1e-6}}], "budgets": {"keep": [32]}},
    "a switch": {"methods": [{"name": "holov", "params": {"parity": False}}], "budgets": {"keep": [32]}},
    "a list": {"methods": [{"name": "pyramiddrop", "params": {"layers": [1, 2, 3]}}], "budgets": {"keep": [32]}},
    "a word": {"methods": [{"name": "fastv", "params": {"preset": "official"}}], "budgets": {"keep": [32]}},
    "a word that reads as a number": {
        "methods": [{"name": "diffprune", "params": {"checkpoint": "2"}}],
        "budgets": {"keep": [8]},
    },
    "nothing": {"methods": [{"name": "dart", "params": {"ratio": None, "layer": 1}}], "budgets": {"keep": [32]}},
    "a path with a space": {
        "methods": [{"name": "diffprune", "params": {"checkpoint": "scorers/a run-0"}}],
        "budgets": {"keep": [8]},
    },
    "other weights": {
        "backbone": {"name": "llava-1.5", "weights": "some/where", "revision": "abc", "quantize": "4bit"},
        **RANDOM,
    },
    "another conversation": {"protocol": {"prompt": "template"}, "backbone": "llava-1.5", **RANDOM},
    "kernels": {"protocol": {"dtype": "float16", "attention": "eager", "limit": 30}, **RANDOM},
    "tiles": {"backbone": "llava-next", "protocol": {"anyres": "global", "newline": "keep"}, **RANDOM},
    "pixels": {"backbone": "qwen2.5-vl", "protocol": {"min_pixels": 3136, "max_pixels": 100352}, **RANDOM},
    "OCR tokens": {"protocol": {"ocr": True}, "tasks": ["textvqa"], **RANDOM},
    "no OCR tokens": {"backbone": "llava-1.5", "protocol": {"ocr": False}, "tasks": ["textvqa"], **RANDOM},
    "LLaVA's wording": {"protocol": {"wording": "llava", "reading": "llava", "image_aspect": "crop"}, **RANDOM},
    "LLaVA's grids": {"backbone": "llava-next", "protocol": {"grids": "llava"}, **RANDOM},
    "a published protocol": {"backbone": "llava-1.5", "protocol": "published", **RANDOM},
}


def manifest_of(entries: dict[str, Any]) -> Manifest:
    data = {"name": "case", "backbone": "toy-llava", "tasks": ["pope"], **entries}
    return make_manifest(data, source="case")


def parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Return the manifest that `dpbench run` plans for a command."""
    planned: list[Manifest] = []
    monkeypatch.setattr(plan_arguments, "format_estimate", lambda manifest, *_, **__: planned.append(manifest) or "")
    program, *words = shlex.split(text)
    result = CliRunner().invoke(commands.app, [*words, "--dry-run"])
    assert (program, result.exit_code) == ("dpbench", 0), result.output
    return planned[0]


@pytest.mark.parametrize("kind", CASES)
def test_the_command_of_a_cell_gives_the_same_cell_id(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells(manifest_of(CASES[kind]))
    text = command(cell.to_json(), Path("results/a"))
    assert "manifest.yaml" not in text
    (again,) = cells(parsed(text, monkeypatch))
    assert again.to_json() == cell.to_json()
    assert again.id == cell.id


def test_every_field_of_a_cell_is_changed_in_some_case() -> None:
    """A new field of a protocol or backbone entry fails here until a case of it stands above."""
    changed = set()
    for entries in CASES.values():
        manifest = manifest_of(entries)
        backbone, protocol = manifest.backbone, manifest.protocol
        changed |= {n for n in WEIGHTS_FIELDS if getattr(backbone, n) != BackboneEntry.model_fields[n].default}
        changed |= {n for n in PROTOCOL_FIELDS if getattr(protocol, n) != Protocol.model_fields[n].default}
    assert changed == {*WEIGHTS_FIELDS, *PROTOCOL_FIELDS}


@pytest.mark.parametrize(
    "entries",
    [
        {"protocol": {"seeds": [3]}, **RANDOM},
        {"methods": ["none", "random"], "budgets": {"keep": [16], "kind": "final"}},
    ],
    ids=["another seed", "the unpruned model beside final budgets"],
)
def test_a_cell_that_flags_cannot_describe_is_run_from_its_manifest(entries: dict[str, Any]) -> None:
    cell = next(cells(manifest_of(entries)))
    expected = "dpbench run 'results/a b/manifest.yaml' --tasks pope"
    assert command(cell.to_json(), Path("results/a b")) == expected
