"""The shipped toy data: whole, balanced, and what the seed makes."""

from collections import Counter, defaultdict
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pyarrow.parquet as pq
import pytest
from places import PACKAGE, TOY_DATA, TOY_WEIGHTS

from dpbench import tasks
from dpbench.tasks import lmms_eval_adapter

SUMS = TOY_DATA / "SHA256SUMS"


def test_shipped_files_are_the_ones_that_were_checked_in() -> None:
    listed = dict(line.split("  ")[::-1] for line in SUMS.read_text(encoding="ascii").splitlines())
    found = {path.relative_to(PACKAGE / "toy").as_posix(): path for path in TOY_DATA.rglob("*.parquet")}
    found |= {"glyphs.txt": PACKAGE / "toy" / "glyphs.txt"}
    found |= {path.relative_to(PACKAGE / "toy").as_posix(): path for path in TOY_WEIGHTS.glob("*.safetensors")}
    assert {name: sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == listed


def test_everything_shipped_is_small() -> None:
    assert all(path.stat().st_size <= 10_000_000 for path in (PACKAGE / "toy").rglob("*") if path.is_file())


ANSWERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "gqa": lambda doc: doc["answer"],
    "mme": lambda doc: doc["answer"],
    "pope": lambda doc: doc["answer"],
    "vqav2": lambda doc: doc["multiple_choice_answer"],
    "textvqa": lambda doc: Counter(doc["answers"]).most_common(1)[0][0],
    "vizwiz": lambda doc: Counter(doc["answers"]).most_common(1)[0][0],
    "scienceqa": lambda doc: doc["choices"][doc["answer"]],
    "seedbench": lambda doc: doc[f"choice_{doc['answer'].lower()}"],
    "mmbench_en": lambda doc: doc[doc["answer"]],
    "mmbench_cn": lambda doc: doc[doc["answer"]],
}


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_the_text_alone_tells_nothing(name: str) -> None:
    """Every prompt, word for word, is asked equally often with each of its answers."""
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=None)
    docs = built.task.test_docs_no_media()
    by_prompt: dict[str, Counter[str]] = defaultdict(Counter)
    for request in built.requests:
        by_prompt[request.text][ANSWERS[name](docs[request.doc_id])] += 1
    for text, counts in by_prompt.items():
        assert len(counts) >= 2, text
        if name == "mme":
            assert abs(counts["Yes"] - counts["No"]) == 0, text
    best = sum(max(counts.values()) for counts in by_prompt.values())
    assert best / len(built.requests) <= CHANCE[name] / 100 + 0.02


CHANCE = {
    "gqa": 50, "mmbench_en": 25, "mmbench_cn": 25, "mme": 50, "pope": 50, "scienceqa": 50, "vqav2": 50,
    "textvqa": 12.5, "seedbench": 25, "vizwiz": 34,
}  # fmt: skip


@pytest.mark.slow
def test_the_seed_makes_the_shipped_content() -> None:
    from dpbench.toy.mirror_rows import tables

    for name, rows in tables(0).items():
        shards = sorted(TOY_DATA.glob(f"{name}-*.parquet"))
        shipped = [row for path in shards for row in pq.read_table(path).to_pylist()]
        assert len(shipped) == len(rows)
        for theirs, mine in zip(shipped, rows, strict=True):
            texts = {key: value for key, value in mine.items() if key != "image"}
            assert {key: theirs[key] for key in texts} == texts
