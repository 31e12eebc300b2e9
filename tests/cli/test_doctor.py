"""What the doctor finds, and that each thing missing comes with its remedy."""

from pathlib import Path

import pytest

from dpbench.cli import doctor
from dpbench.tasks.data.root import toy_data_root


def test_the_embedded_weights_are_found_and_the_others_come_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    found = {each.name: each for each in doctor.weights()}
    assert found["toy-llava"].lack == ""
    assert "hf download llava-hf/llava-1.5-7b-hf" in found["llava-1.5"].lack


def test_data_that_is_there_is_counted_and_other_data_has_its_command(tmp_path: Path) -> None:
    there = {each.name: each for each in doctor.data(toy_data_root())}
    assert there["pope"].text.startswith("found (1 files")
    absent = {each.name: each.lack for each in doctor.data(tmp_path)}
    assert absent["pope"] == "fetch it with `dpbench data pull pope`"


def test_a_command_without_its_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "lmms_eval" else object())
    found = {each.name: each for each in doctor.commands()}
    assert found["dpbench run"].lack == "pip install lmms_eval"
    assert found["dpbench profile"].lack == ""


def test_the_whole_report_names_every_section(tmp_path: Path) -> None:
    text = doctor.report(tmp_path)
    for title in ("Machine", "Torch", "GPU", "Weights", "Benchmarks", "Commands", "Optional"):
        assert f"{title}\n" in text
    assert "free disk here" in text
