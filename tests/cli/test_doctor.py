"""The findings of `dpbench doctor`: whatever is missing comes with a remedy."""

from importlib import metadata
from pathlib import Path

import pytest

from dpbench.cli import doctor
from dpbench.cli.commands import app
from dpbench.cli.messages import format_columns
from dpbench.tasks.data.root import toy_data_root


def test_the_embedded_weights_are_found_and_the_others_come_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    findings = {finding.name: finding for finding in doctor.weights()}
    assert findings["toy-llava"].remedy == ""
    rows = doctor._format_findings(findings.values())
    assert max(map(len, format_columns(rows, 80).split("\n"))) <= 80
    assert f"missing: {findings['llava-next-13b'].remedy}" in format_columns(rows, 80)  # a command on one line
    assert "hf download llava-hf/llava-1.5-7b-hf" in findings["llava-1.5"].remedy


def test_data_that_is_there_is_counted_and_other_data_has_its_command(tmp_path: Path) -> None:
    present = {finding.name: finding for finding in doctor.data(toy_data_root())}
    assert present["pope"].text.startswith("found (1 files")
    absent = {finding.name: finding.remedy for finding in doctor.data(tmp_path)}
    assert absent["pope"] == "dpbench data pull pope"


def test_a_required_package_that_is_missing_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "lmms-eval":
            raise metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=2", "lmms-eval>=0.7", 'ruff; extra == "dev"'])
    findings = {finding.name: finding for finding in doctor.packages()}
    assert set(findings) == {"torch", "lmms-eval"}
    assert (findings["torch"].text, findings["torch"].remedy) == ("1.0", "")
    assert findings["lmms-eval"].remedy == "pip install 'lmms-eval>=0.7'"


def test_the_packages_are_those_that_the_distribution_declares() -> None:
    names = {finding.name for finding in doctor.packages()}
    assert {"torch", "transformers", "lmms-eval"} <= names
    assert not {"ruff", "bitsandbytes"} & names


def test_the_whole_report_names_every_section(tmp_path: Path) -> None:
    text = doctor.report(tmp_path, app)
    for title in ("Machine", "Torch", "GPU", "Weights", "Benchmarks", "Packages", "Optional", "Commands"):
        assert f"{title}\n" in text
    assert "free disk here" in text
    assert "cores wanted" in text


def test_each_command_lacks_what_its_code_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"matplotlib", "tensorboardX", "lmms_eval"}
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in hidden else object())
    lacks = {finding.name: finding.remedy.partition(";")[0] for finding in doctor.commands(app)}
    assert lacks["run"] == "lmms_eval" or lacks["run"] == "lmms_eval, matplotlib"
    assert lacks["train"] == "tensorboardX"
    assert lacks["visualize"] == "matplotlib"
    assert lacks["check"] == lacks["data pull"] == lacks["list tasks"] == ""


def test_optional_packages_are_those_of_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", version)
    assert {finding.name: finding.remedy for finding in doctor.optional_packages()} == {
        "bitsandbytes": "pip install 'diffprune-bench[quantize]'",
        "decord": "pip install 'diffprune-bench[video]'",
    }


@pytest.mark.parametrize(("load", "is_busy"), [(0.4, False), (1.1, True), (9.0, True)])
def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, load: float, is_busy: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    text = doctor.describe_load(2)
    assert text.startswith(f"{load} of 2 cores wanted")
    assert ("busy" in text) == is_busy
