"""Damage manifests, journals and records at random: every file is read, or refused in one sentence.

The files start as valid ones and get pieces cut, moved, doubled and replaced. Hypothesis makes DPBENCH_FUZZ_FILES
(default 500) for each reader from DPBENCH_FUZZ_SEED (default 0), and shows the smallest one that breaks a reader.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from made_records import make_answer, make_record

from dpbench.errors import DpbenchError
from dpbench.manifest import cell, reading
from dpbench.report import runs
from dpbench.storage import record
from dpbench.storage.journal import Journal
from dpbench.storage.record import Profile

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("DPBENCH_FUZZ_FILES", "500"))
SEED = int(os.environ.get("DPBENCH_FUZZ_SEED", "0"))

MANIFEST = """name: fuzz  # a comment
backbone: {name: toy-llava, weights: null}
methods: [none, random, {name: fastv, params: {layer: 2}}]
budgets: {keep: [16, &k 32, *k], kind: mean}
tasks: [pope, gqa]
protocol: {dtype: float32, batch_size: auto, seeds: [0, 1], limit: 4}
"""
FINGERPRINTS = {"weights": "w", "data": "d", "task": "t"}
RECORD = json.dumps(asdict(make_record("grid", 16, "pope", 50.0, params={"layers": [1, 2]}, fingerprints=FINGERPRINTS)))
ANSWER = json.dumps(asdict(make_answer("pope", 3, "image", {"pope_accuracy": {"score": 1.0}}, answer="yes\\u2028")))
SCRAPS = [
    *"{}[]:,\"'\n\t %",
    *("- ", "? ", "| ", "> ", "&a ", "*a", "<<: *k", "!!", "---\n", "...\n", "..."),
    *("null", "true", "NaN", "1e999", "-1", "0", "0x", "0o9", "1_0", "2024-99-99", "1:60"),
    *("!!python/object/apply:os.system [id]", "!!binary x", "!!int x", "!!set {a}", "\0", "\ud7ff", "\u2028", "\ufeff"),
    *("[" * 3000, '{"a":' * 3000, "9" * 5000, '"schema": 2', '"schema": []', "../", "/etc/passwd"),
]


def damaged(text: str) -> st.SearchStrategy[bytes]:
    """Return variants of a text: pieces replaced by scraps, text or other pieces of it, and odd bytes inserted."""
    place = st.integers(0, len(text))
    edit = st.tuples(place, st.integers(0, 40), st.sampled_from(SCRAPS) | st.text(max_size=8) | place)

    def apply(edits: list[tuple[int, int, str | int]], odd: bytes, at: int) -> bytes:
        edited = text
        for start, length, new in edits:
            piece = new if isinstance(new, str) else edited[new : new + length]
            edited = edited[:start] + piece + edited[start + length :]
        data = edited.encode("utf-8", "surrogatepass")
        return data[:at] + odd + data[at:]

    return st.builds(apply, st.lists(edit, max_size=4), st.just(b"") | st.binary(max_size=3), place)


def read_manifest(path: Path) -> None:
    """Read a manifest and hash its cells, as `dpbench run --dry-run` does."""
    assert all(one.id for one in cell.cells(reading.load_manifest(path)))


def read_journal(path: Path) -> None:
    """Read a journal, mend it, and read it again: nothing is left to mend."""
    journal = Journal(path)
    journal.mend()
    with redirect_stderr(StringIO()) as told:
        assert Journal(path).answers == journal.answers
    assert told.getvalue() == ""


def read_records(path: Path) -> None:
    """Read records and find those that share a table, as `dpbench report` does."""
    path.replace(path.with_name("records.jsonl"))
    runs.comparisons([runs.load(path.parent)])


def read_profiles(path: Path) -> None:
    record.read(path, Profile)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_manifest, MANIFEST),
        (read_journal, f"{ANSWER}\n" * 2),
        (read_records, f"{RECORD}\n" * 2),
        (read_profiles, f"{RECORD}\n"),
    ],
)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    tmp_path: Path, read: Callable[[Path], None], text: str
) -> None:
    outcomes: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=FILES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(text) | st.binary(max_size=200))
    def read_one(data: bytes) -> None:
        path = tmp_path / "file.yaml"
        path.write_bytes(data)
        try:
            with redirect_stderr(StringIO()):  # where a journal lists its damaged lines
                read(path)
        except DpbenchError as error:
            if "\n" in str(error):
                raise AssertionError(f"not one sentence: {error}") from error
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1

    read_one()
    assert outcomes.total() >= FILES
    assert outcomes["refused"] or read is read_journal
