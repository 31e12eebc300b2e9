"""Numbers in manifests and parameters are decimal, finite and written as numbers; anything else is refused by line."""

import re
from pathlib import Path
from typing import Any

import pytest

from dpbench import registry
from dpbench.errors import ConfigError
from dpbench.manifest.reading import load_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage.exact_numbers import find_inexact

TEXT = """name: numbers
backbone: toy-llava
methods: [none, {method}]
budgets: {{{budgets}}}
protocol: {{{protocol}}}
"""


def read(folder: Path, budgets: str = "keep: [9]", protocol: str = "", method: str = "random") -> Manifest:
    path = folder / "m.yaml"
    path.write_text(TEXT.format(method=method, budgets=budgets, protocol=protocol), encoding="utf-8")
    return load_manifest(path)


@pytest.mark.parametrize(
    ("written", "wanted"), [("016", 16), ("+5", 5), ("1e1", 10), ("16.0", 16), ("0016", 16), ("1E2", 100)]
)
def test_a_limit_is_decimal(tmp_path: Path, written: str, wanted: int) -> None:
    assert read(tmp_path, protocol=f"limit: {written}").protocol.limit == wanted


@pytest.mark.parametrize("written", [".5", "0.5", "+.5", "5e-1", "00.50"])
def test_a_share_is_decimal(tmp_path: Path, written: str) -> None:
    budgets = read(tmp_path, budgets=f"prune_rate: [{written}]").budgets
    assert budgets is not None
    assert budgets.prune_rate == [0.5]


NO_COUNTS = [
    "0o16",
    "0x10",
    "0b1",
    "1_000",
    "1:30",
    "16.5",
    "'16'",
    "-3",
    "true",
    "yes",
    "off",
    ".inf",
    ".nan",
    "2024-01-01",
]
NO_SHARES = ["'0.5'", "1_0.5", "50%", "true", "no", ".nan", "-.inf", "0x1", "0:30"]


@pytest.mark.parametrize(
    ("section", "line", "place"),
    [
        *(({"protocol": f"limit: {written}"}, 5, "protocol.limit") for written in NO_COUNTS),
        *(({"budgets": f"keep: [9, {written}]"}, 4, "budgets.keep.1") for written in NO_COUNTS),
        *(({"protocol": f"seeds: [{written}]"}, 5, "protocol.seeds.0") for written in NO_COUNTS if written != "-3"),
        *(({"budgets": f"prune_rate: [{written}]"}, 4, "budgets.prune_rate.0") for written in NO_SHARES),
        ({"method": "{name: holov, params: {eps: .nan}}"}, 3, "methods.1.params.eps"),
        ({"method": "{name: holov, params: {list: [1, .inf]}}"}, 3, "methods.1.params.list.1"),
    ],
)
def test_what_is_no_number_is_refused_with_its_line(
    tmp_path: Path, section: dict[str, str], line: int, place: str
) -> None:
    with pytest.raises(ConfigError, match=rf"m\.yaml:{line}: {re.escape(place)}: .*, got "):
        read(tmp_path, **section)


@pytest.mark.parametrize("key", ["~", "true", "5", "1.5", "016", "null"])
@pytest.mark.parametrize("section", ["protocol", "method"])
def test_a_key_that_is_no_text_is_refused_with_its_line(tmp_path: Path, key: str, section: str) -> None:
    value = f"{key}: 3" if section == "protocol" else f"{{name: holov, params: {{a: {{{key}: 3}}}}}}"
    with pytest.raises(ConfigError, match=rf"m\.yaml:[35]: the key {re.escape(key)} is not text; put it in quotes"):
        read(tmp_path, **{section: value})


@pytest.mark.parametrize("key", ["no", "on", "yes", "2024-01-01", "1_0"])
def test_a_key_that_looks_like_something_else_in_yaml_1_1_is_the_text_that_it_is(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, method=f"{{name: random, params: {{{key}: a}}}}").methods[1].params == {key: "a"}
    with pytest.raises(ConfigError, match=rf"m\.yaml:5: protocol\.{key}: unknown key '{key}'"):
        read(tmp_path, protocol=f"{key}: 3")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("holov", {"variance_weight": float("nan")}), ("holov", {"eps": float("inf")}),
        ("holov", {"variance_weight": True}), ("holov", {"variance_weight": "0.09"}), ("holov", {"num_crops": True}),
        ("holov", {"num_crops": "1_0"}), ("pyramiddrop", {"layers": [True, 2]}), ("pyramiddrop", {"layers": ["8"]}),
    ],
)  # fmt: skip
def test_a_parameter_that_is_a_number_takes_nothing_else(method: str, params: dict[str, Any]) -> None:
    ((name, value),) = params.items()
    shown = value[0] if isinstance(value, list) else value
    with pytest.raises(ConfigError, match=rf"{method}\.{name}(\.0)?: must be a finite number, got {shown!r}"):
        registry.load(method, params)


def test_numbers_text_and_truth_values_that_are_taken_as_they_are_written_pass() -> None:
    given = {"a": [1, 2.0], "b": "16", "c": True, "d": None, "e": {"f": 3}}
    assert find_inexact(given, {**given, "a": (1, 2), "new": 4}) is None
    assert find_inexact({"e": [{"f": "3"}]}, {"e": [{"f": 3}]}) == (("e", 0, "f"), "3")
