"""The structure of the package: rooms, import rules, no circles, what is hashed, and start-up cost."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PACKAGE

from dpbench.manifest import source_files

ROOMS = {
    "backbones", "cli", "conformance", "diffprune", "engine",
    "estimate", "evaluation", "machine", "manifest", "measure",
    "probe", "report", "storage", "tasks", "toy", "visualize",
}  # fmt: skip
AT_THE_TOP = {"__init__", "__main__", "budget", "errors", "method", "registry", "schedule"}
ALLOWED = {
    "lmms_eval": ("tasks/",),
    "transformers": (
        "backbones/",
        "engine/",
        "diffprune/",
        "toy/",
        "conformance/vectors/llama.py",
        "probe/patch_site.py",
    ),
    "typer": ("cli/",),
    "dpbench_baselines": (),
}
LIGHT = ("cli", "evaluation/plan", "manifest", "storage", "registry", "report", "tasks/aggregators", "errors", "budget")
"""Modules and packages that load no torch at import."""


def modules() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = ("dpbench", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Return which modules of the package each module imports at run time, inside functions too."""
    paths = {module_name(path): path for path in modules()}
    return {
        name: {other for other in source_files.imported_modules(path, name) if other in paths and other != name}
        for name, path in paths.items()
    }


def test_the_package_has_the_rooms_of_the_layout_and_few_files_beside_them() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == ROOMS
    assert {path.stem for path in PACKAGE.glob("*.py")} == AT_THE_TOP


def test_no_import_closes_a_circle() -> None:
    """Follow imports depth first; a module met again while it is still open closes a circle."""
    graph = imports()
    graph.pop("dpbench")
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_what_can_change_an_answer_is_hashed() -> None:
    """Import every hashed package in a new process: what of dpbench is then loaded is hashed, or exempt."""
    hashed = set(source_files.source_files("dpbench.diffprune.method"))
    names = [module_name(path) for path in sorted(hashed)]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'dpbench'), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stdout.splitlines()}
    assert len(loaded) > 30
    unknown = [path for path in loaded - hashed if not source_files.is_exempt(module_name(path))]
    assert unknown == []


@pytest.mark.parametrize(
    "name",
    [
        "engine/feature_cache", "engine/forward", "engine/dropping", "machine/out_of_memory", "machine/device",
        "machine/cuda_graph", "tasks/data/image_file", "tasks/lmms_eval_adapter", "tasks/scoring", "backbones/llava",
        "method", "schedule", "budget", "diffprune/scorer",
    ],
)  # fmt: skip
def test_a_change_to_a_file_behind_an_answer_changes_the_hash(name: str) -> None:
    assert PACKAGE / f"{name}.py" in source_files.source_files("dpbench.diffprune.method")


def test_a_change_to_what_only_shows_answers_does_not() -> None:
    hashed = {path.relative_to(PACKAGE).parts[0] for path in source_files.source_files("dpbench.diffprune.method")}
    assert not hashed & {"cli", "report", "evaluation", "measure", "toy", "visualize"}


def imported_libraries(path: Path) -> set[str]:
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
        if library in imported_libraries(path):
            assert name.startswith(ALLOWED[library]), f"{name} imports {library}"


def test_light_packages_load_no_torch() -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    assert not {'torch', 'transformers', 'lmms_eval'} & set(sys.modules), name"
    light = [path for path in modules() if path.relative_to(PACKAGE).as_posix().startswith(LIGHT)]
    names = [module_name(path) for path in light if "visualize" not in path.parts]
    subprocess.run([sys.executable, "-c", code, *names], check=True)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list", "methods"], ["list", "backbones"], ["list", "tasks"], ["list", "manifests"], ["report"]],
)
def test_light_commands_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dpbench.cli import commands\nsys.argv = ['dpbench', *sys.argv[1:]]\n"
        "try:\n    commands.main()\nexcept SystemExit as done:\n    print('EXIT', done.code, file=sys.stderr)\n"
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
