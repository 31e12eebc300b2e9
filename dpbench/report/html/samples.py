"""The samples of a comparison for the page: image, question, truth, and what each row answered and kept.

Images and questions are in the benchmarks' parquet files; an image is shown only if it is the one that was answered, by
its hash. No torch, no lmms-eval.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dpbench import tasks
from dpbench.errors import MissingError
from dpbench.report.html.answers import Source, answer_fields, find_sources
from dpbench.report.html.questions import Document, Documents
from dpbench.report.html.thumbnails import fit, thumbnail
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage import packed_answers
from dpbench.storage.journal import Answer
from dpbench.tasks.data.image_file import UNREADABLE
from dpbench.tasks.data.root import toy_data_root

NO_ANSWERS = (
    f"No samples: the run folder has neither journals (samples/) nor {packed_answers.NAME}; copy one of them from "
    "where it ran."
)
_TOGETHER = 4
"""Row groups that samples are taken from in turns; reading one image reads and caches its whole group."""

Answers = Mapping[RowKey, Answer]
"""The answer of each row to one sample."""


@dataclass(frozen=True, slots=True)
class Browser:
    """The samples that the page shows.

    Attributes:
        rows: labels of the rows that answered, in the table's order.
        images: data URIs.
        samples: one mapping per sample, as the page's script reads it.
        note: how many of the samples are shown, or why none are.
        fit: how the image was fitted to the tower: centre, pad, stretch (the base view) or whole; see `thumbnail`.
    """

    rows: tuple[str, ...]
    images: tuple[str, ...]
    samples: tuple[Mapping[str, Any], ...]
    note: str
    fit: str = "centre"


def browser(comparison: Comparison, data_root: Path | None, budget: float) -> Browser:
    """Collect a comparison's samples; its benchmarks share the budget equally.

    Args:
        comparison: its journals or packed answers are in its run folders.
        data_root: folder of the benchmarks' data; None for the hub's cache.
        budget: bytes that images and answers may take.

    Raises:
        RecordError: a journal or packed file cannot be read.
    """
    sources = {task: found for task in comparison.tasks if (found := find_sources(comparison, task))}
    rows = [key for key in comparison.rows if any(key in found for found in sources.values())]
    if not rows:
        return Browser((), (), (), NO_ANSWERS)
    shelf, missing = Shelf(rows, fit(comparison.cell), budget), []
    for number, (task, found) in enumerate(sources.items()):
        try:
            shelf.add(task, found, Documents(task, data_root), part=1 / (len(sources) - number))
        except MissingError as error:
            missing.append(f"Not shown: {error}.")
    alternating = _alternate_tasks(shelf.samples)
    note = " ".join([f"{len(alternating):,} of {_count_samples(comparison):,} samples.", *shelf.notes(), *missing])
    return Browser(tuple(map(row_label, rows)), tuple(shelf.images), alternating, note, shelf.fit)


def _count_samples(comparison: Comparison) -> int:
    """Return how many samples were answered, benchmarks added up."""
    num: dict[str, int] = {}
    for record in comparison.records:
        task = record.cell["task"]
        num[task] = max(num.get(task, 0), record.num_samples + record.num_too_long)
    return sum(num.values())


def default_root(backbone: str) -> Path | None:
    """Return where `dpbench run` looks for data: toy-llava's mirror, else DPBENCH_DATA, else (None) the hub's cache."""
    if backbone == "toy-llava":
        return toy_data_root()
    return Path(os.environ["DPBENCH_DATA"]) if "DPBENCH_DATA" in os.environ else None


def row_label(key: RowKey) -> str:
    """Return a row's method, parameters and budget."""
    return key.label if key.budget.keeps_all else f"{key.label} @ {key.budget.label}"


def _alternate_tasks(samples: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return samples in an order in which the benchmarks alternate."""
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample)
    return tuple(sample for turn in zip_longest(*by_task.values()) for sample in turn if sample is not None)


class Shelf:
    """Samples and their images, within a budget of bytes."""

    def __init__(self, rows: Sequence[RowKey], fit: str, budget: float) -> None:
        self.fit, self.rows, self.left = fit, rows, budget
        self.images: list[str] = []
        self.samples: list[Mapping[str, Any]] = []
        self.num_other = self.num_broken = 0
        self._places: dict[str, int] = {}

    def add(self, task: str, sources: Mapping[RowKey, Source], data: Documents, *, part: float) -> None:
        """Add samples of one benchmark until they have used their part of the remaining budget."""
        floor = self.left * (1 - part)
        for doc_id, answers in self._answers(sources, data, most=int(self.left * part / self._least_bytes())):
            document = data.document(doc_id)
            if document is None or {answer.image_group for answer in answers.values()} != {document.image_hash}:
                self.num_other += 1
                continue
            earlier = self._places.get(document.image_hash)
            try:
                uri = "" if earlier is not None else thumbnail(document.image, self.fit)
            except UNREADABLE:
                self.num_broken += 1
                continue
            place = len(self.images) if earlier is None else earlier
            sample = self._sample(task, doc_id, answers, document, place)
            cost = len(uri) + len(json.dumps(sample, ensure_ascii=False).encode()) + 4
            if self.left - cost < floor:
                return
            self._keep(document.image_hash, uri)
            self.left -= cost
            self.samples.append(sample)

    def _least_bytes(self) -> int:
        """Return a lower bound of a sample's bytes; it limits how many samples are read."""
        return 80 + 12 * len(self.rows)

    def _answers(
        self, sources: Mapping[RowKey, Source], data: Documents, *, most: int
    ) -> Iterator[tuple[int, dict[RowKey, Answer]]]:
        """Yield samples in reading order, with the answers of all rows; only one journal is in memory at a time."""
        ids = sorted({answer.doc_id for answer in next(iter(sources.values())).read()})
        by_doc: dict[int, dict[RowKey, Answer]] = {doc_id: {} for doc_id in _reading_order(ids, data)[:most]}
        for key, source in sources.items():
            for answer in source.read():
                if answer.doc_id in by_doc:
                    by_doc[answer.doc_id][key] = answer
        yield from by_doc.items()

    def _keep(self, name: str, uri: str) -> None:
        if uri:
            self._places[name] = len(self.images)
            self.images.append(uri)

    def _sample(self, task: str, doc_id: int, answers: Answers, document: Document, place: int) -> dict[str, Any]:
        rows = [answer_fields(task, answers[key]) if key in answers else None for key in self.rows]
        title = tasks.ALL[task].title
        return {
            "task": title,
            "doc": doc_id,
            "image": place,
            "question": document.question,
            "truth": document.truth,
            "rows": rows,
        }

    def notes(self) -> Iterator[str]:
        """Yield notes on the selection of samples."""
        if self.num_other:
            yield f"{self.num_other:,} were skipped: the data root has other images than those that were answered."
        if self.num_broken:
            yield f"{self.num_broken:,} were skipped: their image cannot be opened."
        if self.fit == "stretch":
            yield "Kept patches are drawn on the base view; tiles are not shown."


def _reading_order(docs: Iterable[int], data: Documents) -> list[int]:
    """Return the order to read samples in: a few evenly spaced row groups in turns, then the next few."""
    groups: dict[int, list[int]] = defaultdict(list)
    for doc_id in docs:
        groups[data.group(doc_id)].append(doc_id)
    step = max(1, -(-len(groups) // _TOGETHER))
    batches = [list(groups.values())[start::step] for start in range(step)]
    turns = (turn for batch in batches for turn in zip_longest(*batch))
    return [doc_id for turn in turns for doc_id in turn if doc_id is not None]
