"""A benchmark's samples in readable form, straight from its parquet files: question, truth, image file.

Only what is needed is read: texts by row, images by row group. No torch, no datasets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpbench import tasks
from dpbench.errors import MissingError
from dpbench.tasks.data.root import data_files

LETTERS = "ABCDEFGH"
_CHOICES = {"MMBench": ("A", "B", "C", "D"), "SEED-Bench": ("choice_a", "choice_b", "choice_c", "choice_d")}


@dataclass(frozen=True, slots=True)
class Document:
    """One sample.

    Attributes:
        question: the text, with one line per option.
        truth: the answer, or the most frequent answers of people with their counts.
        image: bytes of the image file.
    """

    question: str
    truth: str
    image: bytes

    @property
    def image_hash(self) -> str:
        """Return the name of the image in journals."""
        return sha256(self.image).hexdigest()[:16]


class Table:
    """The parquet files of a split as one table whose rows are read on demand."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [pq.ParquetFile(path) for path in paths]
        self.names: list[str] = self._files[0].schema_arrow.names
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        sizes = (file.metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts: list[int] = [0, *accumulate(sizes)]
        self._read = lru_cache(maxsize=32)(self._read_group)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._starts[-1]

    def group(self, row: int) -> int:
        """Return the row group of a row."""
        return bisect_right(self._starts, row) - 1

    def value(self, row: int, column: str) -> Any:
        """Return one value; its row group's column stays in memory for a while."""
        group = self.group(row)
        return self._read(group, column)[row - self._starts[group]].as_py()

    def column(self, name: str) -> list[Any]:
        """Return all values of a column; for columns of short values."""
        return [value for file in self._files for value in file.read(columns=[name]).column(0).to_pylist()]

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        file, number = self._groups[group]
        return file.read_row_group(number, columns=[column]).column(0)


class Documents:
    """A benchmark's samples by their number in journals.

    Raises:
        MissingError: the data is missing, or only lmms-eval knows how the samples are numbered.
    """

    def __init__(self, task: str, data_root: Path | None) -> None:
        self.task = tasks.find(task)
        if self.task.variant_of:
            raise MissingError(f"task {task}: a selection of {self.task.variant_of}, whose samples are not shown")
        self.table = Table(data_files(task, data_root))
        self._images = Table(data_files(task, data_root, self.task.images)) if self.task.images else None

    @cached_property
    def rows(self) -> Sequence[int]:
        """Return the row of each sample; SEED-Bench's videos are not samples."""
        if self.task.repository != "SEED-Bench":
            return range(len(self.table))
        return [row for row, kind in enumerate(self.table.column("data_type")) if kind == "image"]

    @cached_property
    def _image_rows(self) -> Mapping[str, int]:
        return {name: row for row, name in enumerate(self._images.column("id"))} if self._images else {}

    def group(self, doc_id: int) -> int:
        """Return the row group of a sample."""
        return self.table.group(self.rows[doc_id])

    def document(self, doc_id: int) -> Document | None:
        """Return a sample, or None if its number is out of range or it does not have exactly one image."""
        if not 0 <= doc_id < len(self.rows):
            return None
        row = self.rows[doc_id]
        image = self._image(row)
        names = [name for name in self.task.columns if name in self.table.names and name not in ("image", "ocr_tokens")]
        texts = {name: self.table.value(row, name) for name in names}
        return Document(question(self.task, texts), truth(self.task, texts), image) if image else None

    def _image(self, row: int) -> bytes | None:
        if self._images is not None:
            stored = self._images.value(self._image_rows[self.table.value(row, "imageId")], "image")
        else:
            stored = self.table.value(row, "image")
        files = stored if isinstance(stored, list) else [stored]
        return files[0]["bytes"] if len(files) == 1 and files[0] else None


def question(task: tasks.Task, texts: Mapping[str, Any]) -> str:
    """Return a question with its hint and options, if the benchmark has them."""
    names = _CHOICES.get(task.repository, ())
    options = texts.get("choices") or [texts[name] for name in names if _has_text(texts.get(name))]
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    hint = [str(texts["hint"])] if _has_text(texts.get("hint")) else []
    return "\n".join([*hint, str(texts["question"]), *lines])


def _has_text(text: Any) -> bool:
    """Return True if a column has a text; MMBench writes nan for an empty one."""
    return text is not None and str(text).strip() not in ("", "nan")


def truth(task: tasks.Task, texts: Mapping[str, Any]) -> str:
    """Return the right answer: a letter, a word, or the three most frequent of people's answers."""
    if "answers" in texts:
        answers = [entry["answer"] if isinstance(entry, Mapping) else str(entry) for entry in texts["answers"]]
        most = Counter(answers).most_common(3)
        return ", ".join(f"{answer} ({count} of {len(answers)})" for answer, count in most)
    answer = texts["answer"]
    return LETTERS[answer] if isinstance(answer, int) and task.repository == "ScienceQA" else str(answer)
