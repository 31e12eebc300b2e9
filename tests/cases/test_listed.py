"""The table of cases names tests that exist."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
LISTED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (HERE / "README.md").read_text(encoding="utf-8"))


def test_every_case_has_a_test_that_exists() -> None:
    rows = [line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(LISTED) == len(rows) - 2
    functions = {
        file: {node.name for node in ast.parse((HERE.parents[1] / file).read_text(encoding="utf-8")).body
               if isinstance(node, ast.FunctionDef)}
        for file, _ in LISTED
    }  # fmt: skip
    assert [test for file, test in LISTED if test not in functions[file]] == []


def test_every_test_beside_the_table_is_in_it() -> None:
    written = {
        (f"tests/cases/{file.name}", name)
        for file in HERE.glob("test_*.py")
        if file != Path(__file__)
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert written <= set(LISTED)
