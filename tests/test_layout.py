"""Import rules and start-up cost: what may load what."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PACKAGE

ALLOWED = {
    "lmms_eval": ("lmms.py", "tasks/"),
    "transformers": ("backbones/", "pruning.py", "cutting.py", "diffprune/", "toy/", "vectors/llama.py"),
    "typer": ("cli.py", "options.py"),
    "dpbench_baselines": (),
}


def modules() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_each_library_enters_through_its_door(library: str) -> None:
    for path in modules():
        name = path.relative_to(PACKAGE).as_posix()
        if library in imported(path):
            assert name.startswith(ALLOWED[library]), f"{name} imports {library}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list", "methods"], ["list", "backbones"], ["list", "tasks"], ["list", "manifests"], ["report"]],
)
def test_light_commands_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dpbench import cli\nsys.argv = ['dpbench', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    print('EXIT', done.code, file=sys.stderr)\n"
        "heavy = {'torch', 'transformers', 'lmms_eval', 'datasets', 'dpbench_baselines.trivial'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr)\n"
    )
    (tmp_path / "results" / "a").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "report" / "records.jsonl", tmp_path / "results" / "a")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stderr
    assert "EXIT 0" in done.stderr


def test_no_module_without_a_noun_for_a_name() -> None:
    assert not {path.stem for path in modules()} & {"utils", "util", "common", "helpers", "misc"}
