"""One small training that nothing interrupted, for all tests that compare with it."""

from pathlib import Path

import pytest
from small_training import train_small


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorers") / "trained"
    train_small(out)
    return out
