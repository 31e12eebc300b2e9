"""Methods by name."""

from pathlib import Path

import pytest

from dpbench import registry
from dpbench.errors import ConfigError
from dpbench.method import Method


def test_the_first_methods_are_installed() -> None:
    assert {"none", "random", "grid", "cls-attention"} <= set(registry.methods())


def test_none_is_the_identity() -> None:
    assert registry.load("none") == Method()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("holow", {}, "there is no method 'holow'"),
        ("rando", {}, "did you mean 'random'"),
        ("grid", {"position": "original"}, "did you mean 'positions'"),
        ("grid", {"positions": "middle"}, "grid.positions"),
    ],
)
def test_what_cannot_be_loaded_says_why(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load(name, params)


def test_a_misspelt_spends_does_not_free_a_method_from_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.find("random").load(), "spends", "per-imag")
    with pytest.raises(ConfigError, match="method 'random': spends is 'per-imag'; did you mean 'per-image'"):
        registry.load("random")


def test_parameters_reach_the_method() -> None:
    assert registry.load("random", {"positions": "original"}).positions == "original"


def test_every_method_has_a_one_line_summary_and_a_source() -> None:
    for name in registry.methods():
        assert registry.summary(name).endswith((".", "off."))
        assert Path(registry.source_path(name)).is_file()


def test_params_are_read_as_yaml() -> None:
    assert registry.parse_params(["layer=3", "preset=official", "ratio=.5", "on=true"]) == {
        "layer": 3,
        "preset": "official",
        "ratio": 0.5,
        "on": True,
    }
    with pytest.raises(ConfigError, match="name=value"):
        registry.parse_params(["layer"])


def test_a_method_is_imported_when_it_is_loaded_and_not_when_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "onlooker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onlooker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dpbench.methods]\nonlooker = onlooker:Onlooker\n")
    (tmp_path / "onlooker.py").write_text('"""Nothing."""\nraise RuntimeError("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)
    registry.methods.cache_clear()
    try:
        assert "onlooker" in registry.methods()
        registry.summary("onlooker")
        registry.load("random")
        with pytest.raises(RuntimeError, match="imported"):
            registry.load("onlooker")
    finally:
        registry.methods.cache_clear()
