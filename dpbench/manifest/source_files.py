"""Find the source files that can change an answer: packages, a method, and what these import of dpbench. No torch.

Imports are followed in the source, also inside functions, but not under `if TYPE_CHECKING:`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

PACKAGES = ("engine", "backbones", "tasks")
"""Packages of dpbench whose modules can all change an answer."""
CONTRACT = ("dpbench.method", "dpbench.schedule", "dpbench.budget")
"""The modules that methods are written against."""
EXEMPT = ("dpbench.errors", "dpbench.storage", "dpbench.manifest", "dpbench.registry")
"""Modules and packages that cannot change an answer: messages, files, and what a cell's own fields say."""


def source_files(method_module: str) -> tuple[Path, ...]:
    """Return the files that can change the answers of a method, sorted.

    Args:
        method_module: the module that the method is written in.
    """
    tops = {"dpbench", method_module.partition(".")[0]}
    modules = [name for package in PACKAGES for name in _modules_in(package)]
    return _closure((*CONTRACT, *modules, method_module), frozenset(tops))


def _modules_in(package: str) -> Iterator[str]:
    folder = Path(str(files("dpbench"))) / package
    for path in sorted(folder.glob("*.py")):
        yield f"dpbench.{package}" + ("" if path.stem == "__init__" else f".{path.stem}")


@cache
def _closure(modules: tuple[str, ...], tops: frozenset[str]) -> tuple[Path, ...]:
    """Follow imports inside the top-level packages `tops`."""
    paths: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name in paths or is_exempt(name) else _path_of(name)
        if path is not None:
            paths[name] = path
            waiting += [other for other in imported_modules(path, name) if other.partition(".")[0] in tops]
            waiting.append(name.rpartition(".")[0] or name)  # importing a module runs its package's __init__ too
    return tuple(sorted(set(paths.values())))


def is_exempt(module: str) -> bool:
    """Return True for modules that are not hashed; `dpbench` itself holds the version only."""
    return module == "dpbench" or any(module == name or module.startswith(f"{name}.") for name in EXEMPT)


def _path_of(module: str) -> Path | None:
    """Return a module's source file without importing its package; None for other names, such as a function's."""
    top, *parts = module.split(".")
    for folder in _folders_of(top):
        path = Path(folder, *parts)
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def _folders_of(top: str) -> tuple[str, ...]:
    """Return the folders of a top-level package, or none if it is a single file."""
    spec = importlib.util.find_spec(top)
    return tuple(spec.submodule_search_locations or ()) if spec is not None else ()


def imported_modules(path: Path, module: str) -> set[str]:
    """Return what a file imports at run time, by full name; `from a import b` gives `a` and `a.b`."""
    return _imported_modules(path, module, path.stat().st_mtime_ns)


@cache
def _imported_modules(path: Path, module: str, _mtime_ns: int) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in _run_time_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node except those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _run_time_nodes(child)


def source_hash(paths: Iterable[Path]) -> str:
    """Hash source files by name and code; rewording a docstring or a comment runs no cell again."""
    digest = sha256()
    for path in paths:
        digest.update(_name_and_code(path, path.stat().st_mtime_ns))
    return digest.hexdigest()[:16]


@cache
def _name_and_code(path: Path, _mtime_ns: int) -> bytes:
    return json.dumps([path.name, code_of(path.read_text(encoding="utf-8"))]).encode()


def code_of(source: str) -> str:
    """Return Python source without docstrings, comments and blank lines.

    Spans are cut out of the text itself: what `ast.dump` or `ast.unparse` print differs between versions of Python.
    """
    lines = source.splitlines(keepends=True)
    cuts = [*_docstring_spans(ast.parse(source)), *_comment_spans(lines)]
    for (start, start_column), (end, end_column) in sorted(cuts, reverse=True):
        head, tail = lines[start - 1].encode()[:start_column], lines[end - 1].encode()[end_column:]
        lines[start - 1 : end] = [(head + tail).decode()] + [""] * (end - start)
    return "\n".join(stripped for line in lines if (stripped := line.rstrip()))


Span = tuple[tuple[int, int], tuple[int, int]]
"""Begin and end of a piece of source: line from 1, byte in the line."""


def _docstring_spans(tree: ast.Module) -> Iterator[Span]:
    """Yield the strings that stand as statements: docstrings of modules, classes, functions and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            yield (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _comment_spans(lines: Sequence[str]) -> Iterator[Span]:
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type == tokenize.COMMENT:
            (line, start), (_, end) = token.start, token.end
            text = lines[line - 1]  # tokens count characters, `ast` counts bytes
            yield (line, len(text[:start].encode())), (line, len(text[:end].encode()))
