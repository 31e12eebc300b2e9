"""The journal of a cell: every answer as it comes, appended, so that a run resumes after any kill. No torch.

One JSON line per answered sample. The schema is complete from the first day; a journal of another schema is refused.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dpbench.errors import RecordError
from dpbench.storage import files

SCHEMA = 2
SYNC_S = 1.0
"""Seconds between two syncs of a journal to the disk."""

Key = tuple[str, int, str]
"""Task, number in its split and hash of the prompt: what an answer is looked up by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answered sample.

    Attributes:
        schema: version of this format.
        task: as in `dpbench.tasks.TASKS`.
        doc_id: the sample's number in its split.
        image_hash: SHA-256 prefix over the sample's image files.
        prompt_hash: SHA-256 prefix over the text the model was asked.
        image_group: what samples of the same image share, for clustered intervals.
        answer: what the model said; empty where it failed.
        scores: what lmms-eval's `process_results` made of it.
        visual_tokens: read per decoder layer.
        kept: per image the kept indices, packed; None where rows are no single tokens.
        failure: why there is no answer, else None.
        seed: the cell's.
        shard: which process of several answered.
        cache_hits: how many of its images had been encoded before, for another question or cell.
        encoded: how many of its images were encoded for it.
        ms: milliseconds, the batch's time shared evenly among its samples.
    """

    schema: int = SCHEMA
    task: str
    doc_id: int
    image_hash: str
    prompt_hash: str
    image_group: str
    answer: str
    scores: Mapping[str, Any]
    visual_tokens: tuple[int, ...]
    kept: tuple[str | None, ...]
    failure: str | None
    seed: int
    shard: int
    cache_hits: int
    encoded: int
    ms: float

    @property
    def key(self) -> Key:
        """Return what the answer is looked up by."""
        return self.task, self.doc_id, self.prompt_hash


def pack_indices(indices: Sequence[int], num_visual: int) -> str | None:
    """Pack kept indices as base64 of a bit field, without their order; None if a row is merged or comes twice."""
    if len(set(indices)) < len(indices) or any(index < 0 for index in indices):
        return None
    field = bytearray((num_visual + 7) // 8)
    for index in indices:
        field[index // 8] |= 1 << (index % 8)
    return f"{num_visual}:{base64.b64encode(bytes(field)).decode()}"


def unpack_indices(packed: str) -> list[int]:
    """Return the indices `pack_indices` packed, rising."""
    size, _, text = packed.partition(":")
    field = base64.b64decode(text)
    return [index for index in range(int(size)) if field[index // 8] >> (index % 8) & 1]


class Journal:
    """The answers of one cell, in a file that is only ever appended to.

    Reading changes no file, so that a report can read beside a run. Lines that are no answers are told of on standard
    error, by number, and left out: what they held is answered again.

    Args:
        path: the file.
        others: journals of the same cell that other processes write: read once, never changed.

    Raises:
        RecordError: a line of another schema.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        self.path = path
        self._synced = float("-inf")
        mine = _read(path)
        self.answers: dict[Key, Answer] = {}
        for other in others:
            self.answers |= _read(other).answers
        self.answers |= mine.answers
        self._damage = mine.damage
        if self._damage:
            print(f"{path}: {self._damage}; left out, and answered again where it is missing", file=sys.stderr)

    def mend(self) -> None:
        """Leave only whole answers in the file; no other process may be writing it.

        Raises:
            StorageError: there is no room for it; the file is as it was.
        """
        if self._damage:
            files.replace(self.path, _lines(_read(self.path).answers.values()))
            self._damage = ""

    def append(self, answers: Iterable[Answer]) -> None:
        """Add answers: on return a kill loses none of them; the disk is waited for at most once a second.

        Raises:
            StorageError: there is no room for them; the file is as it was.
        """
        self.mend()
        answers = list(answers)
        due = time.monotonic() - self._synced > SYNC_S
        files.append(self.path, _lines(answers), sync=due)
        if due:
            self._synced = time.monotonic()
        self.answers |= {answer.key: answer for answer in answers}

    def sync(self) -> None:
        """Wait until the disk has everything.

        Raises:
            StorageError: it has no room for it.
        """
        if self.path.is_file():
            files.append(self.path, b"", sync=True)


@dataclass(frozen=True, slots=True)
class _Contents:
    """A journal's answers, and what is wrong with its other lines, if there are any."""

    answers: dict[Key, Answer]
    damage: str


def _lines(answers: Iterable[Answer]) -> bytes:
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()


def _read(path: Path) -> _Contents:
    """Read a journal: of two answers to one sample the first counts, and what a kill or a bad disk left is told."""
    if not path.is_file():
        return _Contents({}, "")
    answers: dict[Key, Answer] = {}
    unreadable, repeated = [], []
    *lines, cut_off = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        answer = _parse(line, f"{path}:{number}")
        if answer is None:
            unreadable.append(number)
        elif answers.setdefault(answer.key, answer) is not answer:
            repeated.append(number)
    found = (
        _named(unreadable, "is no answer", "are no answers"),
        _named(repeated, "repeats another", "repeat others"),
        _named([len(lines) + 1] if cut_off else [], "is cut off", ""),
    )
    return _Contents(answers, ", ".join(filter(None, found)))


def _parse(line: bytes, where: str) -> Answer | None:
    """Return the answer in a line, or None where there is none.

    Raises:
        RecordError: it is one of another schema.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    schema = row.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        raise RecordError(f"{where}: journal schema {schema}, this dpbench reads {SCHEMA}; move the file away")
    try:
        return _answers().validate_json(line, strict=True) if row.keys() == _NAMES else None
    except ValueError:
        return None


@cache
def _answers() -> TypeAdapter[Answer]:
    return TypeAdapter(Answer)


_NAMES = {field.name for field in fields(Answer)}
_MOST_NAMED = 10


def _named(numbers: Sequence[int], one: str, several: str) -> str:
    """Name lines by number and say what is wrong with them; nothing where there are none."""
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"line {numbers[0]} {one}"
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"lines {named}{more} {several}"
