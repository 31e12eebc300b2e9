"""Installing without a GPU: torch's CPU builds satisfy what dpbench requires, and no command imports a CUDA package."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dpbench.cli.command_needs import packages_by_command
from dpbench.cli.commands import app

ROOT = Path(__file__).parents[2]
INDEX = "https://torch.example/cpu"


def test_a_cpu_build_of_torch_satisfies_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    assert required["torch"].contains("2.14.1+cpu")
    assert {name for name in required if name.startswith(("nvidia", "triton", "cu"))} == {"nvidia-ml-py"}


def test_no_command_imports_a_package_that_only_cuda_has() -> None:
    imported = frozenset[str]().union(*packages_by_command(app).values())
    assert {"torch", "transformers", "lmms_eval"} <= imported
    assert not imported & {"triton", "nvidia", "cuda", "cupy", "bitsandbytes", "flash_attn", "xformers"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_quickstart_takes_torch_from_the_index_that_is_named(tmp_path: Path) -> None:
    def commands(*settings: str) -> list[str]:
        command = ["make", "-n", "-C", str(ROOT), "quickstart", f"VENV={tmp_path}/venv", *settings]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    named = [line for line in commands(f"TORCH_INDEX={INDEX}") if "torch " in line]
    assert [line.partition("install ")[2] for line in named] == [f"--quiet torch torchvision --index-url {INDEX}"]
    lines = commands(f"TORCH_INDEX={INDEX}")
    assert lines.index(named[0]) < next(place for place, line in enumerate(lines) if "--editable ." in line)
    assert not [line for line in commands() if "index-url" in line]
