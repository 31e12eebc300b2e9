"""What of a source file counts: code, and neither docstrings nor comments."""

import ast
from pathlib import Path

import pytest

from dpbench.manifest import source_files
from dpbench.manifest.source_files import code_of, imported_modules, source_hash

SOURCE = '''"""A module."""

# why
LIMIT = 3  # tokens
"""What it limits."""


def keep(tokens: list[str]) -> list[str]:
    """Return the first tokens; \\u00e4 before the code."""
    return [f"{token}#" for token in tokens[:LIMIT]]  # "quoted"
'''


def test_only_code_is_left() -> None:
    assert code_of(SOURCE).splitlines() == [
        "LIMIT = 3",
        "def keep(tokens: list[str]) -> list[str]:",
        '    return [f"{token}#" for token in tokens[:LIMIT]]',
    ]


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("A module.", "Another sentence.\n\nAnd one more.", True),
        ("# why", "# another reason", True),
        ("  # tokens", "", True),
        ("What it limits.", "How many tokens are kept.", True),
        ("first tokens", "tokens that come first", True),
        ("\n\n\ndef", "\n\ndef", True),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("{token}#", "{token}", False),
        ("tokens[:LIMIT]", "tokens[LIMIT:]", False),
        ("def keep", "def keep_first", False),
    ],
)
def test_the_hash_follows_code_alone(tmp_path: Path, old: str, new: str, is_same: bool) -> None:
    assert old in SOURCE
    path, hashes = tmp_path / "method.py", []
    for text in (SOURCE, SOURCE.replace(old, new, 1)):
        path.write_text(text, encoding="utf-8")
        hashes.append(source_hash([path]))
    assert (hashes[0] == hashes[1]) == is_same


def test_every_hashed_file_loses_no_statement() -> None:
    """Count the nodes of the syntax tree that are not strings standing alone."""
    for path in source_files.source_files("dpbench.diffprune.method"):
        source = path.read_text(encoding="utf-8")
        lines = {
            node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and not is_text(node)
        }
        code = set(code_of(source).splitlines())
        for number in lines:
            line = source.splitlines()[number - 1]
            assert any(line.startswith(kept.rstrip()) for kept in code), f"{path}:{number}"


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_imports_inside_functions_count_and_those_of_type_checkers_do_not(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nfrom a import b\nfrom . import near\n"
        "if TYPE_CHECKING:\n    import never\n\ndef late():\n    import c.d\n"
    )
    found = imported_modules(path, "package.module")
    assert {"a", "a.b", "c.d", "package", "package.near"} <= found
    assert "never" not in found
