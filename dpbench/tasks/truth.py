"""Refuse data that cannot be scored: samples without a right answer, MMBench circles and MME pairs with parts missing.

A split without answers, or with answers of another kind, would score 0 without a word; a circle without its rotations
is easier than a whole one.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from dpbench import tasks
from dpbench.errors import ConfigError
from dpbench.tasks import scoring
from dpbench.tasks.aggregators import ROTATION

Doc = Mapping[str, Any]
UNREAD = ("image", "question", "ocr_tokens")
"""Columns that are large and say nothing about the answer."""
AT_ONCE = 1000
"""Rows that are converted at once."""


def check(name: str, docs: Dataset, num_asked: int | None) -> None:
    """Refuse a benchmark's data if a sample that is asked has no right answer, or a group is not whole.

    Args:
        name: as in `dpbench.tasks.ALL`; one that only its server scores is not checked.
        docs: its rows without images.
        num_asked: how many of them are asked, the first ones; None for all.

    Raises:
        ConfigError: names the first sample or group, and says how many there are.
    """
    benchmark = tasks.find(name)
    if benchmark.metric is None:
        return
    rows = docs.select_columns([name for name in benchmark.columns if name in docs.column_names and name not in UNREAD])
    asked = rows.select(range(num_asked)) if num_asked is not None and num_asked < len(rows) else rows
    _refuse(name, list(_without_truth(benchmark, asked)), f"of {len(asked)} samples have no answer that could be right")
    if benchmark.group == "circle":
        _refuse(name, _broken_circles(_read(rows)), "circles do not have each of their rotations once")
    if benchmark.group == "question_id":
        _refuse(name, _broken_pairs(_read(rows)), "images do not have two questions")


def _refuse(name: str, found: Sequence[str], what: str) -> None:
    if found:
        raise ConfigError(
            f"task {name}: {len(found)} {what}, the first: {found[0]}; the data is damaged or of a split without "
            f"answers, fetch it again with: dpbench data pull {name}"
        )


def _read(rows: Dataset) -> Iterator[Doc]:
    for batch in rows.with_format("arrow").iter(AT_ONCE):
        yield from batch.to_pylist()


def _without_truth(benchmark: tasks.Task, rows: Dataset) -> Iterator[str]:
    """Yield each sample without an answer that could be right: where it is, and what stands there."""
    key = next((column for column in ("index", "question_id") if column in rows.column_names), None)
    truth = "answers" if "answers" in rows.column_names else "answer"
    for number, doc in enumerate(_read(rows)):
        if not _has_truth(benchmark.repository, doc):
            place = f"{key} {doc[key]!r}" if key else f"row {number}"
            yield f"{place}, {truth} {doc.get(truth)!r}"


def _has_truth(repository: str, doc: Doc) -> bool:
    """Return True if some answer to a sample can be right."""
    if "answers" in doc:
        words = [each["answer"] if isinstance(each, Mapping) else each for each in doc["answers"] or ()]
        return any(_is_word(word) for word in words)
    possible = _possible(repository, doc)
    answer = doc.get("answer")
    if possible is None:
        return _is_word(answer)
    return (answer.strip().lower() if isinstance(answer, str) else answer) in possible


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


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
    """Return MME's images that do not have two questions, with how many they have."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for doc in docs:
        counts[doc["category"], doc["question_id"]] += 1
    return [f"question_id {image!r} of {category} has {num}" for (category, image), num in counts.items() if num != 2]
