"""Which packages each command may import, read from its source and the modules it imports. Imports none of them."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import typer

PACKAGE = "dpbench"


def packages_by_command(app: typer.Typer, before: str = "") -> dict[str, frozenset[str]]:
    """Return the modules of other packages that each command may import, by the command's name.

    Args:
        app: commands, and groups of commands.
        before: names of the groups that it is in.
    """
    found = {}
    for command in app.registered_commands:
        if command.callback is not None:
            name = command.name or command.callback.__name__
            found[f"{before}{name}"] = _packages_of(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            found |= packages_by_command(group.typer_instance, f"{before}{group.name} ")
    return found


def _packages_of(callback: Callable[..., object]) -> frozenset[str]:
    """Return what a command imports inside itself, and everything that these modules import, anywhere in them."""
    body = inspect.unwrap(callback)
    waiting = list(_imported(ast.parse(textwrap.dedent(inspect.getsource(body)))))
    waiting += _of_module(body.__module__)
    seen, packages = set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] != PACKAGE:
            packages.add(name.split(".")[0])
        elif name not in seen:
            seen.add(name)
            waiting += _of_module(name)
    return frozenset(packages - sys.stdlib_module_names - {"dpbench_baselines"})


@cache
def _of_module(name: str) -> tuple[str, ...]:
    """Return what a module of dpbench imports; a module of commands only what it does at its top."""
    path = Path(str(files(PACKAGE))).joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():  # a name inside the module above, which is looked at by itself
        return ()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    holds_commands = f"{PACKAGE}.cli" in name and name.endswith("commands")
    return tuple(_imported(tree, enter_functions=not holds_commands))


def _imported(tree: ast.AST, *, enter_functions: bool = True) -> Iterator[str]:
    """Yield the names that code imports; what only type checkers read is left out."""
    for node in ast.iter_child_nodes(tree):
        is_left_out = isinstance(node, ast.FunctionDef) and not enter_functions
        is_left_out |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.split(".")[0] == PACKAGE:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not is_left_out:
            yield from _imported(node, enter_functions=enter_functions)
