"""Refuse data that cannot be scored: no right answer, a sample twice, parts of MMBench circles and MME pairs missing.

A split without answers, or with answers of another kind, would score 0 without a word; a circle without its rotations
is easier than a whole one; of fewer than ten answers VQA's accuracy is never 100.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from dpbench import tasks
from dpbench.errors import ConfigError
from dpbench.tasks import scoring
from dpbench.tasks.aggregators import PERCEPTION, ROTATION

Doc = Mapping[str, Any]
UNREAD = ("image", "ocr_tokens")
"""Columns that are large and say nothing about the answer."""
AT_ONCE = 1000
"""Rows that are converted at once."""
NUM_ANSWERS = 10
"""People asked about each image, on which VQA's accuracy rests (VQA, section 3.3; VizWiz and TextVQA follow it)."""
PLACEHOLDERS = ("", "-", "n/a", "nan", "null")
"""Words, in small letters, that stand where there is no answer."""
SPLITS = {
    "POPE": ("adversarial", "popular", "random"),
    "MME": (*PERCEPTION, "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
"""By benchmark, the categories that its score is a mean over (POPE, section 4.1; MME, section 2)."""


def check_files(name: str, paths: Sequence[Path]) -> None:
    """Refuse data whose files cannot be opened or have no rows.

    Raises:
        ConfigError: names the first such file.
    """
    for path in paths:
        try:
            num_rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            cause = " ".join(str(error).split())[:160]
            reason = f"is truncated or not a parquet file ({cause})"
        else:
            reason = "" if num_rows else "has no rows"
        if reason:
            raise ConfigError(f"task {name}: {path} {reason}; remove it and fetch it with: dpbench data pull {name}")


def check_groups(name: str, docs: Dataset) -> None:
    """Refuse a benchmark's data if one of its groups, asked or not, is not whole.

    Args:
        name: as in `dpbench.tasks.ALL`.
        docs: its rows without images.

    Raises:
        ConfigError: names the first group, and says how many there are.
    """
    benchmark = tasks.find(name)
    rows = _relevant(benchmark, docs)
    if benchmark.group == "circle":
        bad = [f"row {number}, index {at!r}" for number, at in enumerate(rows["index"]) if not isinstance(at, int)]
        _refuse(name, bad, f"of {len(rows)} samples have no number")
        _refuse(name, _broken_circles(_read(rows)), "circles do not have each of their rotations once")
    if benchmark.group == "question_id":
        _refuse(name, _broken_pairs(_read(rows)), "images do not have two questions")


def check_samples(name: str, docs: Dataset, num_asked: int | None) -> None:
    """Refuse a benchmark's data if a sample that is asked has no right answer, no known category, or is there twice.

    Args:
        name: as in `dpbench.tasks.ALL`; of one that only its server scores nothing is known.
        docs: its rows without images.
        num_asked: how many of them are asked, the first ones; None for all.

    Raises:
        ConfigError: names the first sample, and says how many there are.
    """
    benchmark = tasks.find(name)
    if benchmark.metric is None:
        return
    rows = _relevant(benchmark, docs)
    asked = rows.select(range(num_asked)) if num_asked is not None and num_asked < len(rows) else rows
    for what, places in _faults(benchmark, asked).items():
        _refuse(name, places, f"of {len(asked)} samples {what}")


def _relevant(benchmark: tasks.Task, docs: Dataset) -> Dataset:
    return docs.select_columns(
        [name for name in ("id", *benchmark.columns) if name in docs.column_names and name not in UNREAD]
    )


def _refuse(name: str, found: Sequence[str], what: str) -> None:
    if found:
        raise ConfigError(
            f"task {name}: {len(found)} {what}, the first: {found[0]}; the data is damaged or of a split without "
            f"answers, fetch it again with: dpbench data pull {name}"
        )


def _read(rows: Dataset) -> Iterator[Doc]:
    for batch in rows.with_format("arrow").iter(AT_ONCE):
        yield from batch.to_pylist()


def _faults(benchmark: tasks.Task, rows: Dataset) -> dict[str, list[str]]:
    """Return by fault the samples that have it: where each is, and what stands there."""
    key = next((column for column in ("index", "question_id", "id") if column in rows.column_names), None)
    found: dict[str, list[str]] = defaultdict(list)
    seen: set[tuple[Any, ...]] = set()
    splits = _splits(benchmark, rows)
    for number, doc in enumerate(_read(rows)):
        place = f"{key} {doc[key]!r}" if key else f"row {number}"
        same = (doc.get("category"), doc[key], doc["question"]) if key else (number,)
        if fault := _truth_fault(benchmark.repository, doc):
            truth = "answers" if "answers" in doc else "answer"
            found[fault].append(f"{place}, {truth} {doc.get(truth)!r}")
        if splits and doc["category"] not in splits:
            found["have a category that the score does not know"].append(f"{place}, category {doc['category']!r}")
        if benchmark.group is None and same in seen:
            found["are there twice"].append(place)
        seen.add(same)
    return found


def _splits(benchmark: tasks.Task, rows: Dataset) -> Collection[str]:
    """Return the categories that a sample may have; none where any is fine, as for data of POPE that has no splits."""
    known = SPLITS.get(benchmark.repository, ())
    return known if "category" in rows.column_names and any(rows["category"]) else ()


def _truth_fault(repository: str, doc: Doc) -> str | None:
    """Return what is wrong with the truth of a sample, or None if some answer to it can be right."""
    nothing = "have no answer that could be right"
    if "answers" in doc:
        words = [each["answer"] if isinstance(each, Mapping) else each for each in doc["answers"] or ()]
        if not any(_is_word(word) for word in words):
            return nothing
        is_whole = len(words) == NUM_ANSWERS and all(isinstance(word, str) for word in words)
        return None if is_whole else f"do not have {NUM_ANSWERS} answers"
    possible = _possible(repository, doc)
    answer = doc.get("answer")
    if possible is None:
        return None if _is_word(answer) else nothing
    return None if (answer.strip().lower() if isinstance(answer, str) else answer) in possible else nothing


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() not in PLACEHOLDERS


def _possible(repository: str, doc: Doc) -> Collection[Any] | None:
    """Return what a sample's answer may be, in small letters; None for any word."""
    if repository in ("POPE", "MME"):
        return ("yes", "no")
    if repository == "MMBench":
        return [letter.lower() for letter in scoring.mmbench_options(doc)]
    if repository == "SEED-Bench":
        return [letter.lower() for letter in scoring.SEED_CHOICES]
    if repository == "ScienceQA":
        return range(len(doc["choices"]) if doc["choices"] else len(string.ascii_uppercase))  # none: it is not asked
    return None


def _broken_circles(docs: Iterator[Doc]) -> list[str]:
    """Return MMBench's questions that were not turned once to every option, with what they have instead.

    The data writes "nan" for an option that is not there, and may do so for one whose text is like nothing ("None"):
    a question has as many options as the last one in any of its rotations.
    """
    turns: dict[int, list[int]] = defaultdict(list)
    num_options: dict[int, int] = defaultdict(int)
    for doc in docs:
        circle, turn = doc["index"] % ROTATION, doc["index"] // ROTATION
        turns[circle].append(turn)
        last = max((scoring.MMBENCH_LETTERS.index(letter) + 1 for letter in scoring.mmbench_options(doc)), default=0)
        num_options[circle] = max(num_options[circle], last)
    return [
        f"index {circle} has {num_options[circle]} options and the rotations {sorted(found)}"
        for circle, found in turns.items()
        if not len(found) == len(set(found)) == num_options[circle]
    ]


def _broken_pairs(docs: Iterator[Doc]) -> list[str]:
    """Return MME's images that do not have two different questions, with how many they have."""
    asked: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for doc in docs:
        asked[doc["category"], doc["question_id"]].append((doc["question"], doc["answer"]))
    return [
        f"question_id {image!r} of {category} has {len(set(pair))}{' twice' if len(set(pair)) < len(pair) else ''}"
        for (category, image), pair in asked.items()
        if not len(pair) == len(set(pair)) == 2
    ]
