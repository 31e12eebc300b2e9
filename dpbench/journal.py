"""The journal of a cell: every answer as it comes, appended, so that a run resumes after any kill. No torch.

One JSON line per answered sample. The schema is complete from the first day; a journal of another schema is refused.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpbench.errors import RecordError

SCHEMA = 2
SYNC_S = 1.0
"""Seconds between two syncs of a journal to the disk."""


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
    def key(self) -> tuple[str, int, str]:
        """Return what the answer is looked up by."""
        return self.task, self.doc_id, self.prompt_hash


def pack_indices(indices: Sequence[int], num_visual: int) -> str | None:
    """Pack kept indices as base64 of a bit field; None if a row is no single token or the order is not rising."""
    if any(after <= before for before, after in pairwise(indices)) or (indices and indices[0] < 0):
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

    Args:
        path: the file.
        others: journals of the same cell that other processes write: read once, never changed.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        self.path = path
        self._synced = float("-inf")
        self.answers = {answer.key: answer for other in others for answer in _read(other, mend=False)}
        self.answers |= {answer.key: answer for answer in _read(path, mend=True)}

    def append(self, answers: Iterable[Answer]) -> None:
        """Add answers: on return a kill loses none of them; the disk is waited for at most once a second."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        answers = list(answers)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
            stream.flush()
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(stream.fileno())
                self._synced = time.monotonic()
        self.answers |= {answer.key: answer for answer in answers}

    def sync(self) -> None:
        """Wait until the disk has everything."""
        if self.path.is_file():
            with self.path.open("a") as stream:
                os.fsync(stream.fileno())


def _read(path: Path, *, mend: bool) -> Iterator[Answer]:
    """Yield a journal's answers; a last line that a kill cut off is left out, and cut from the file to mend it."""
    if not path.is_file():
        return
    names = {field.name for field in fields(Answer)}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if mend and len(whole) < len(data):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    for number, line in enumerate(whole.decode().split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise RecordError(f"{path}:{number}: this line is not JSON; delete it and run again") from None
        if row.get("schema") != SCHEMA or set(row) != names:
            raise RecordError(
                f"{path}:{number}: journal schema {row.get('schema')!r}, this dpbench reads {SCHEMA}; move it"
            )
        yield Answer(**{**row, "visual_tokens": tuple(row["visual_tokens"]), "kept": tuple(row["kept"])})
