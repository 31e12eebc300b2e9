"""Feed broken files to the readers of manifests, journals and records: they answer or refuse, and never break.

Texts begin as real ones and are cut, spliced, swapped and soiled; hypothesis makes them, a seed repeats them.

    python benchmarks/fuzz.py --minutes 10 --seed 0
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dpbench.errors import DpbenchError
from dpbench.manifest import cell, reading
from dpbench.report import runs
from dpbench.storage import record
from dpbench.storage.journal import Answer, Journal
from dpbench.storage.record import Profile, Record

BATCH = 500
"""Examples of a reader before the next one has its turn."""

MANIFEST = """name: fuzz  # a comment
backbone: {name: toy-llava, weights: null}
methods: [none, random, {name: fastv, params: {layer: 2}}]
budgets: {keep: [16, &k 32, *k], kind: mean}
tasks: [pope, gqa]
protocol: {dtype: float32, batch_size: auto, seeds: [0, 1], limit: 4}
"""
RECORD = Record(
    cell_id="a",
    cell={
        **{"backbone": "toy-llava", "task": "pope", "method": "grid", "params": {"layers": [1, 2]}, "keep": 16},
        **{"prune_rate": None, "seed": 0, "limit": None, "dtype": "float32", "attention": "sdpa"},
        "fingerprints": {"weights": "w", "data": "d", "task": "t"},
    },
    metrics={"exact_match": 0.5},
    score=50.0,
    num_samples=2,
    num_failed=0,
    visual_tokens_per_layer=(16.0, 16.0),
    feature_cache={"hits": 3},
    wall_s=0.5,
    finished="2026-11-24T12:00:00+00:00",
    versions={"torch": "2.15"},
    environment={"device": "cpu"},
)
ANSWER = Answer(
    task="pope",
    doc_id=3,
    image_hash="i",
    prompt_hash="p",
    image_group="i",
    answer="yes\\u2028",
    scores={"pope_accuracy": {"score": 1.0}},
    visual_tokens=(16, 16),
    kept=("144:AA==", None),
    failure=None,
    seed=0,
    shard=0,
    cache_hits=0,
    encoded=1,
    ms=1.5,
)
SCRAPS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"',
        "'",
        "\n",
        "\t",
        " ",
        "- ",
        "? ",
        "| ",
        "> ",
        "&a ",
        "*a",
        "<<: *k",
        "!!",
        "%",
    ),
    *("null", "true", "NaN", "1e999", "-1", "0", "0x", "0o9", "1_0", "2024-99-99", "1:60", "." * 3, "---\n", "...\n"),
    *("!!python/object/apply:os.system [id]", "!!binary x", "!!int x", "!!set {a}", "\0", "\ud7ff", "\u2028", "\ufeff"),
    *("[" * 3000, '{"a":' * 3000, "9" * 5000, '"schema": 2', '"schema": []', "../", "/etc/passwd"),
]


def soiled(text: str) -> st.SearchStrategy[bytes]:
    """Return variants of a text: with pieces cut out, doubled, moved or replaced by scraps, whole or with odd bytes."""
    place = st.integers(0, len(text))
    edit = st.tuples(place, st.integers(0, 40), st.sampled_from(SCRAPS) | st.text(max_size=8) | place)

    def apply(edits: list[tuple[int, int, str | int]], odd: bytes, at: int) -> bytes:
        found = text
        for start, length, new in edits:
            piece = new if isinstance(new, str) else found[new : new + length]
            found = found[:start] + piece + found[start + length :]
        data = found.encode("utf-8", "surrogatepass")
        return data[:at] + odd + data[at:]

    few = st.lists(edit, max_size=4)
    return st.builds(apply, few, st.just(b"") | st.binary(max_size=3), place)


def read_manifest(path: Path) -> None:
    """Read a manifest and expand it, as `dpbench run --dry-run` does."""
    for each in cell.cells(reading.load_manifest(path)):
        each.id  # noqa: B018 - hashes the whole cell


def read_journal(path: Path) -> None:
    """Read a journal, which mends it, and read it again."""
    Journal(path)
    Journal(path)


def read_records(path: Path) -> None:
    """Read records and see which share a table, as `dpbench report` does."""
    path.replace(path.with_name("records.jsonl"))
    runs.comparisons([runs.load(path.parent)])


def read_profiles(path: Path) -> None:
    """Read profiles."""
    record.read(path, Profile)


LINES = {kind: json.dumps(asdict(line)) + "\n" for kind, line in (("record", RECORD), ("answer", ANSWER))}
READERS: Mapping[str, tuple[Callable[[Path], None], st.SearchStrategy[bytes]]] = {
    "manifests": (read_manifest, soiled(MANIFEST) | st.binary(max_size=200)),
    "journals": (read_journal, soiled(LINES["answer"] * 2) | st.binary(max_size=200)),
    "records": (read_records, soiled(LINES["record"] * 2) | st.binary(max_size=200)),
    "profiles": (read_profiles, soiled(LINES["record"]) | st.binary(max_size=200)),
}


def fuzz(name: str, number: int, folder: Path) -> Counter[str]:
    """Give a reader a batch of files.

    Args:
        name: of the reader.
        number: seeds the batch.
        folder: for the files.

    Returns:
        How many were read, and how many refused with a sentence.

    Raises:
        BaseException: what is no DpbenchError broke out of the reader; hypothesis shows the smallest such file.
    """
    reader, texts = READERS[name]
    counts: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(texts)
    def once(data: bytes) -> None:
        path = folder / "file.yaml"
        path.write_bytes(data)
        try:
            with redirect_stderr(StringIO()):  # where a journal says which lines it left out
                reader(path)
        except DpbenchError as error:
            if "\n" in str(error):
                raise AssertionError(f"not one sentence: {error}") from error
            counts["refused"] += 1
        else:
            counts["read"] += 1

    once()
    return counts


def main() -> None:
    """Fuzz the readers in turn until the time is up, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {name: Counter() for name in READERS}
    ends, number = time.monotonic() + 60 * options.minutes, options.seed << 32
    with TemporaryDirectory() as folder:
        while time.monotonic() < ends:
            for name in READERS:
                counts[name] += fuzz(name, number, Path(folder))
            number += 1
    for name, found in counts.items():
        print(f"{name:<10} {found.total():>9,} files: {found['read']:,} read, {found['refused']:,} refused")
    print(f"{sum(each.total() for each in counts.values()):,} files in {options.minutes:g} minutes, nothing broke")


if __name__ == "__main__":
    main()
