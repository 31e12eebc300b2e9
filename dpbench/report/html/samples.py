"""The samples of a comparison for the page: image, question, truth, and what each row answered and kept.

Answers and kept tokens are in the journals, images and questions in the benchmarks' parquet files; an image is shown
only if it is the one that was answered, by its hash. No torch, no lmms-eval.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import ImageOps

from dpbench import backbones, tasks
from dpbench.errors import MissingError
from dpbench.report.html.questions import Document, Documents
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage import journal
from dpbench.storage.journal import Answer
from dpbench.tasks.data.image_file import UNREADABLE, open_image
from dpbench.tasks.data.root import toy_data_root

NO_JOURNALS = "No samples: the run folder has no journals (samples/); copy them from where it ran."
_CLIP_MEAN = (122, 116, 104)
"""CLIP's mean colour, with which LLaVA-1.5 pads."""
THUMBNAIL = 160
"""Longest side of an embedded image in pixels."""
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
        comparison: its journals are in its run folders.
        data_root: folder of the benchmarks' data; None for the hub's cache.
        budget: bytes that images and answers may take.

    Raises:
        RecordError: a journal cannot be read.
    """
    paths = {task: _find_journals(comparison, task) for task in comparison.tasks}
    rows = [key for key in comparison.rows if any(key in journals for journals in paths.values())]
    if not rows:
        return Browser((), (), (), NO_JOURNALS)
    shelf, missing = Shelf(rows, _fit(comparison.cell), budget), []
    answered = {task: journals for task, journals in paths.items() if journals}
    for number, (task, journals) in enumerate(answered.items()):
        try:
            shelf.add(task, journals, Documents(task, data_root), part=1 / (len(answered) - number))
        except MissingError as error:
            missing.append(f"Not shown: {error}.")
    total = sum(next(iter(journals.values())).read_bytes().count(b"\n") for journals in answered.values())
    alternating = _alternate_tasks(shelf.samples)
    note = " ".join([f"{len(alternating):,} of {total:,} samples.", *shelf.notes(), *missing])
    return Browser(tuple(map(row_label, rows)), tuple(shelf.images), alternating, note, shelf.fit)


def default_root(backbone: str) -> Path | None:
    """Return where `dpbench run` looks for data: toy-llava's mirror, else DPBENCH_DATA, else (None) the hub's cache."""
    if backbone == "toy-llava":
        return toy_data_root()
    return Path(os.environ["DPBENCH_DATA"]) if "DPBENCH_DATA" in os.environ else None


def _fit(cell: Mapping[str, Any]) -> str:
    """Return how a cell's images were fitted to the tower; see `thumbnail`."""
    family = backbones.find(cell["backbone"])
    if family.tiles or family.native_resolution:
        return "stretch" if family.tiles else "whole"
    return "pad" if cell["image_aspect"] == "pad" else "centre"


def row_label(key: RowKey) -> str:
    """Return a row's method, parameters and budget."""
    return key.label if key.budget.keeps_all else f"{key.label} @ {key.budget.label}"


def _alternate_tasks(samples: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return samples in an order in which the benchmarks alternate."""
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample)
    return tuple(sample for turn in zip_longest(*by_task.values()) for sample in turn if sample is not None)


def _find_journals(comparison: Comparison, task: str) -> dict[RowKey, Path]:
    """Return the journal of each row on a benchmark; with several seeds, that of the lowest."""
    journals: dict[RowKey, Path] = {}
    for key in comparison.rows:
        paths = [
            folder / "samples" / f"{record.cell_id}.jsonl"
            for record in comparison.of(key, task)
            for folder in comparison.folders
        ]
        existing = [path for path in paths if path.is_file()]
        journals |= {key: existing[0]} if existing else {}
    return journals


class Shelf:
    """Samples and their images, within a budget of bytes."""

    def __init__(self, rows: Sequence[RowKey], fit: str, budget: float) -> None:
        self.fit, self.rows, self.left = fit, rows, budget
        self.images: list[str] = []
        self.samples: list[Mapping[str, Any]] = []
        self.num_other = self.num_broken = 0
        self._places: dict[str, int] = {}

    def add(self, task: str, journals: Mapping[RowKey, Path], data: Documents, *, part: float) -> None:
        """Add samples of one benchmark until they have used their part of the remaining budget."""
        floor = self.left * (1 - part)
        for doc_id, answers in self._answers(journals, data, most=int(self.left * part / self._least_bytes())):
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
        self, journals: Mapping[RowKey, Path], data: Documents, *, most: int
    ) -> Iterator[tuple[int, dict[RowKey, Answer]]]:
        """Yield samples in reading order, with the answers of all rows; only one journal is in memory at a time."""
        first = journal.Journal(next(iter(journals.values()))).answers.values()
        ids = sorted({answer.doc_id for answer in first})
        by_doc: dict[int, dict[RowKey, Answer]] = {doc_id: {} for doc_id in _reading_order(ids, data)[:most]}
        for key, path in journals.items():
            for answer in journal.Journal(path).answers.values():
                if answer.doc_id in by_doc:
                    by_doc[answer.doc_id][key] = answer
        yield from by_doc.items()

    def _keep(self, name: str, uri: str) -> None:
        if uri:
            self._places[name] = len(self.images)
            self.images.append(uri)

    def _sample(self, task: str, doc_id: int, answers: Answers, document: Document, place: int) -> dict[str, Any]:
        rows = [_answer_fields(task, answers[key]) if key in answers else None for key in self.rows]
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


def _answer_fields(task: str, answer: Answer) -> list[Any]:
    """Return an answer as the page's script reads it: text, points 0-1 or None, kept patches or None, tokens read."""
    kept = answer.kept[0] if len(answer.kept) == 1 else None
    tokens = round(sum(answer.visual_tokens) / len(answer.visual_tokens), 1) if answer.visual_tokens else None
    return [answer.failure or answer.answer, points(task, answer.scores), kept, tokens]


def points(task: str, scores: Mapping[str, Any]) -> float | None:
    """Return the points of a single sample, 0-1, or None if it was not scored.

    MME and MMBench score samples in groups; here each sample counts by itself.
    """
    scored = scores.get(tasks.ALL[task].metric or "")
    if not isinstance(scored, Mapping):
        return None if scored is None else round(float(scored), 2)
    for predicted, true in (("prediction", "ground_truth"), ("pred", "answer"), ("prediction", "answer")):
        if predicted in scored and true in scored and "hit" not in scored:
            return float(str(scored[predicted]).strip().lower() == str(scored[true]).strip().lower())
    earned = scored.get("hit", scored.get("score"))
    return None if earned is None else round(float(earned), 2)


def _reading_order(docs: Iterable[int], data: Documents) -> list[int]:
    """Return the order to read samples in: a few evenly spaced row groups in turns, then the next few."""
    groups: dict[int, list[int]] = defaultdict(list)
    for doc_id in docs:
        groups[data.group(doc_id)].append(doc_id)
    step = max(1, -(-len(groups) // _TOGETHER))
    batches = [list(groups.values())[start::step] for start in range(step)]
    turns = (turn for batch in batches for turn in zip_longest(*batch))
    return [doc_id for turn in turns for doc_id in turn if doc_id is not None]


def thumbnail(data: bytes, fit: str) -> str:
    """Return a small version of an image, cut to what the tower sees, as a data URI.

    Args:
        data: an image file.
        fit: "centre" crops to the middle square, "pad" adds bars of the mean colour, "stretch" resizes to a square,
            "whole" changes nothing.
    """
    image = open_image(data)
    side = min(image.size)
    if fit == "centre":
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif fit == "pad":
        image = ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), color=_CLIP_MEAN)
    elif fit == "stretch":
        image = image.resize((THUMBNAIL, THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=72, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
