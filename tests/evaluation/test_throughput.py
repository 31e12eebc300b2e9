"""`benchmarks/throughput.py`: random weights are timed where lmms-eval is not installed."""

import subprocess
import sys

import pytest
from places import PACKAGE


@pytest.mark.parametrize("what", [pytest.param("batch", marks=pytest.mark.slow), "--help"])
def test_the_throughput_of_random_weights_needs_no_lmms_eval(what: str) -> None:
    code = (
        "import runpy, sys\nsys.modules['lmms_eval'] = sys.modules['datasets'] = None\n"
        "sys.argv = sys.argv[1:]\nsys.path.insert(0, 'benchmarks')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = PACKAGE.parent / "benchmarks" / "throughput.py"
    arguments = [what, "--samples", "4", "--questions", "2", "--max-new-tokens", "2", "--size", "96x96"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("questions per image" in done.stdout) == (what == "batch")
