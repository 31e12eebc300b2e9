"""One small training that nothing interrupted, for all tests that compare with it."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from small_training import train_small


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorers") / "trained"
    train_small(out)
    return out


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> None:
    """Forget the rank that accelerate shares in a process: a test of a launcher may have left another than 0."""
    AcceleratorState._reset_state(reset_partial_state=True)
