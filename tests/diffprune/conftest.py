"""One small training that nothing interrupted, for all tests that compare with it, and what a refusal prints."""

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from small_training import train_small
from training_data import Refusal

from dpbench.cli import commands


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorers") / "trained"
    train_small(out)
    return out


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> None:
    """Forget the rank that accelerate shares in a process: a test of a launcher may have left another than 0."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what `datasets` converts out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Run something as a command and return the one sentence it ends in, with exit code 2."""

    def run(call: Callable[[], object]) -> str:
        monkeypatch.setattr(commands, "app", call)
        with pytest.raises(SystemExit) as done:
            commands.main()
        assert done.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run
