"""The journal of a cell: each answer is appended as it comes, so that a run resumes after any kill. No torch.

One JSON line per answered sample. A journal of another schema is refused.
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
"""What an answer is looked up by: its task, the sample's number in the split, and a hash of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answered sample.

    Attributes:
        schema: version of this format.
        task: as in `dpbench.tasks.TASKS`.
        doc_id: the sample's number in its split.
        image_hash: SHA-256 prefix over the sample's image files.
        prompt_hash: SHA-256 prefix over the text of the prompt.
        image_group: the same for all samples of one image, for clustered intervals.
        answer: the model's text; empty if the sample failed.
        scores: what lmms-eval's `process_results` returned for it.
        visual_tokens: number read by each decoder layer.
        kept: per image the kept tokens, packed by `pack_indices`; None if no row is a single token.
        failure: why there is no answer, else None.
        too_long: the reason is that the sample does not fit into the model's context unpruned; it is not scored.
        seed: the cell's.
        shard: number of the process that answered.
        cache_hits: how many of its images were already encoded, for another question or cell.
        encoded: how many of its images were encoded for it.
        ms: milliseconds; a batch's time is split evenly among its samples.
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
    too_long: bool = False

    @property
    def key(self) -> Key:
        """Return the key that the answer is looked up by."""
        return self.task, self.doc_id, self.prompt_hash


def pack_indices(indices: Sequence[int], num_visual: int) -> str | None:
    """Pack which tokens were kept as base64 of a bit field; their order is lost.

    Rows that are no single token (-1: merged, or zeros) are left out: how many there are follows from the tokens read.

    Args:
        indices: which token each row is, or -1.
        num_visual: tokens of the image.

    Returns:
        The packed tokens; None if rows were kept and none is a single token, or if a token is kept twice.
    """
    tokens = [index for index in indices if index >= 0]
    if len(set(tokens)) < len(tokens) or (indices and not tokens):
        return None
    field = bytearray((num_visual + 7) // 8)
    for index in tokens:
        field[index // 8] |= 1 << (index % 8)
    return f"{num_visual}:{base64.b64encode(bytes(field)).decode()}"


def count_indices(packed: str) -> int:
    """Return how many tokens were packed."""
    return int.from_bytes(base64.b64decode(packed.split(":")[1])).bit_count()


class Journal:
    """The answers of one cell, in a file that is only appended to.

    Reading changes no file, so a report can read while a run writes. Damaged lines are listed by number on standard
    error and ignored: their samples are answered again.

    Args:
        path: the file.
        others: journals of the same cell that other processes write; read once, never changed.

    Raises:
        RecordError: a line has another schema.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        self.path = path
        self._synced = float("-inf")
        contents = _read(path)
        self.answers: dict[Key, Answer] = {}
        for other in others:
            self.answers |= _read(other).answers
        self.answers |= contents.answers
        self._damage = contents.damage
        if self._damage:
            print(f"{path}: {self._damage}; ignored, samples without an answer are answered again", file=sys.stderr)

    def mend(self) -> None:
        """Rewrite the file without its damaged lines; no other process may be writing it.

        Raises:
            StorageError: the disk has an error; the file is as it was.
        """
        if self._damage:
            files.replace(self.path, _lines(_read(self.path).answers.values()))
            self._damage = ""

    def append(self, answers: Iterable[Answer]) -> None:
        """Append answers. On return a kill of the process loses none; a power cut loses at most the last second's.

        Raises:
            StorageError: the disk has an error; the file is as it was.
        """
        self.mend()
        answers = list(answers)
        due = time.monotonic() - self._synced > SYNC_S
        files.append(self.path, _lines(answers), sync=due)
        if due:
            self._synced = time.monotonic()
        self.answers |= {answer.key: answer for answer in answers}

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            StorageError: the disk has an error.
        """
        if self.path.is_file():
            files.append(self.path, b"", sync=True)


@dataclass(frozen=True, slots=True)
class _Contents:
    """A journal's answers, and a description of its damaged lines; empty if there are none."""

    answers: dict[Key, Answer]
    damage: str


def _lines(answers: Iterable[Answer]) -> bytes:
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()


def _read(path: Path) -> _Contents:
    """Read a journal. Of two answers to one sample the first counts; damaged lines are described."""
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
    damage = (
        _format_lines(unreadable, "is not an answer", "are not answers"),
        _format_lines(repeated, "repeats another", "repeat others"),
        _format_lines([len(lines) + 1] if cut_off else [], "is cut off", ""),
    )
    return _Contents(answers, ", ".join(filter(None, damage)))


def _parse(line: bytes, where: str) -> Answer | None:
    """Return the answer in a line, or None if the line is damaged.

    Raises:
        RecordError: the line has another schema.
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
        return _answer_type().validate_json(line, strict=True) if _NEEDED <= row.keys() <= _FIELDS else None
    except ValueError:
        return None


@cache
def _answer_type() -> TypeAdapter[Answer]:
    return TypeAdapter(Answer)


_FIELDS = {field.name for field in fields(Answer)}
_NEEDED = _FIELDS - {"too_long"}
"""Answers of before the field was added lack it."""
_MOST_LISTED = 10


def _format_lines(numbers: Sequence[int], one: str, several: str) -> str:
    """Return what is wrong with lines, with their numbers; empty if there are none."""
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"line {numbers[0]} {one}"
    listed = ", ".join(map(str, numbers[:_MOST_LISTED]))
    more = f" and {len(numbers) - _MOST_LISTED} more" if len(numbers) > _MOST_LISTED else ""
    return f"lines {listed}{more} {several}"
