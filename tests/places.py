"""Where the package keeps what the tests read."""

from pathlib import Path

import dpbench

PACKAGE = Path(dpbench.__file__).parent
TOY_DATA = PACKAGE / "toy" / "data"
TOY_WEIGHTS = PACKAGE / "toy" / "weights"
GOLDENS = Path(__file__).parent / "goldens"
RESULTS = Path(__file__).parents[1] / "results"
