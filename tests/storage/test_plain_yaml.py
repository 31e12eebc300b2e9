"""Scalars in manifests and parameters are read as people write them, and what is written reads back the same."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dpbench import registry
from dpbench.errors import ConfigError
from dpbench.manifest.reading import load_manifest
from dpbench.storage import plain_yaml

MANIFEST = "name: x\nbackbone: toy-llava\nmethods: [grid]\ntasks: [gqa]\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("016", 16), ("08", 8), ("-007", -7), ("+5", 5), ("0", 0), ("00", 0),
        ("1e-4", 1e-4), ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("-.5e1", -5.0), ("0.50", 0.5), ("010.5", 10.5),
        (".inf", math.inf), ("-.INF", -math.inf),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        *((word, word) for word in ("yes", "no", "on", "off", "Yes", "NO", "y", "n")),
        *((word, word) for word in ("1_000", "0x10", "0o17", "0b11", "12:30", "1:30:00", "190:20:30.15")),
        *((word, word) for word in ("2024-01-01", "2024-01-01 12:00:00", "=", "1.2.3", "1e", "e5", ".", "3d")),
        ('"016"', "016"), ("'true'", "true"),
    ],
)  # fmt: skip
def test_a_scalar_is_what_people_mean_by_it(text: str, value: Any) -> None:
    found, _ = plain_yaml.load(f"[{text}]" if text else "[null]")
    assert found == [value]
    assert type(found[0]) is type(value)


def test_not_a_number_is_one() -> None:
    assert math.isnan(plain_yaml.load(".nan")[0])


def manifest(tmp_path: Any, lines: str) -> Any:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST + lines)
    return load_manifest(path)


def test_numbers_in_a_manifest_are_decimal(tmp_path: Any) -> None:
    read = manifest(tmp_path, "budgets: {keep: [016, 08]}\nprotocol: {limit: 0100, seeds: [010], ocr: no}\n")
    assert read.budgets.keep == [16, 8]
    assert (read.protocol.limit, read.protocol.seeds, read.protocol.ocr) == (100, [10], False)
    assert manifest(tmp_path, "budgets: {prune_rate: [5e-1]}\nprotocol: {ocr: on}\n").budgets.prune_rate == [0.5]


@pytest.mark.parametrize("number", ["1:30", "0x10", "0o20", "0b100", "1_6", "2024-01-01", "yes", "1e1", "sixteen"])
def test_what_is_no_decimal_count_is_refused_with_its_line(number: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=rf"m\.yaml:6: budgets\.keep.*got ('{number}'|10\.0)"):
        manifest(tmp_path, f"budgets:\n  keep: [{number}]\n")


@pytest.mark.parametrize("name", ["no", "2024-01-01", "1_000", "on"])
def test_a_name_that_yaml_11_takes_for_something_else_is_a_name(name: str, tmp_path: Any) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST.replace("name: x", f"name: {name}") + "budgets: {keep: [16]}\n")
    assert load_manifest(path).name == name


def test_parameters_on_the_command_line_are_read_alike() -> None:
    pairs = ["a=016", "b=1e-3", "c=no", "d=12:30", "e=[08, true]"]
    assert registry.parse_params(pairs) == {"a": 16, "b": 1e-3, "c": "no", "d": "12:30", "e": [8, True]}


TEXT = st.text(st.characters(codec="ascii"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
    | st.sampled_from(["016", "08", "1e-4", "no", "12:30", "2024-01-01", "1_0", "0x1", "<<", "=", "~", "1.", "True"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)  # fmt: skip


@given(values, st.booleans())
def test_written_data_reads_back_the_same_here_and_elsewhere(data: Any, one_line: bool) -> None:
    text = plain_yaml.dump(data, one_line=one_line)
    assert plain_yaml.load(text)[0] == data
    assert yaml.safe_load(text) == data
