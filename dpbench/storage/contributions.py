"""What each scored unit of a run adds to its benchmark's score, packed in a small file that suffices for intervals.

A unit is what is right or wrong as a whole: a sample, an MME pair, an MMBench circle. U units, T ratios of a score (see
`dpbench.tasks.aggregators`), C clusters. `contributions.npz` lies in the run folder and is committed with the records,
so that intervals survive without the journals. No torch, no pandas.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpbench import tasks
from dpbench.errors import RecordError
from dpbench.storage import files, journal, record
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record
from dpbench.tasks import aggregators
from dpbench.tasks.aggregators import Sums

NAME = "contributions.npz"
SCHEMA = 1
TOLERANCE = 0.01
"""Points by which a score recomputed from contributions may differ from the record's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The units of a benchmark, shared by all cells that answered the same samples.

    Attributes:
        unit_U: number of each unit's first sample in its split, int32.
        cluster_U: number of each unit's image group, in order of first appearance, int32.
        denominator_UT: points that each unit can earn, float32; ones where that depends on a cell's answers.
        images: hash over the image groups' names in that order.
    """

    unit_U: NDArray[np.int32]
    cluster_U: NDArray[np.int32]
    denominator_UT: NDArray[np.float32]
    images: str

    @property
    def id(self) -> str:
        """Return a hash over all of it."""
        digest = sha256(self.images.encode())
        for part in (self.unit_U, self.cluster_U, self.denominator_UT):
            digest.update(repr(part.shape).encode() + part.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Detections:
    """What the layout of an F1 (POPE's) cannot say of a cell, because it depends on the answers.

    Attributes:
        denominator_UT: whether a unit was answered yes plus whether that is true, in the column of its split, float32.
        right_U: whether the answer was right; a no that is right adds nothing to an F1.
    """

    denominator_UT: NDArray[np.float32]
    right_U: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One cell's units: their layout, and the points each earned, float32 (U, T).

    Attributes:
        layout: shared with other cells.
        numerator_UT: points earned, float32.
        detections: of an F1, else None.
    """

    layout: Layout
    numerator_UT: NDArray[np.float32]
    detections: Detections | None = None

    @property
    def denominator_UT(self) -> NDArray[np.float32]:
        """Return what the points earned are divided by."""
        return self.detections.denominator_UT if self.detections else self.layout.denominator_UT

    def sums(self, chosen_U: NDArray[np.bool_] | None = None) -> Sums:
        """Add up units per image group, only the chosen ones if given."""
        keep_U = np.ones(len(self.numerator_UT), dtype=bool) if chosen_U is None else chosen_U
        _, row_U = np.unique(self.layout.cluster_U[keep_U], return_inverse=True)
        size = int(row_U.max()) + 1 if len(row_U) else 0
        added = [
            np.stack([np.bincount(row_U, part[keep_U, ratio], size) for ratio in range(part.shape[1])], axis=1)
            for part in (self.numerator_UT, self.denominator_UT)
        ]
        return Sums(added[0].astype(np.float64), added[1].astype(np.float64), tuple(map(str, range(size))))

    def gives(self, score: float) -> bool:
        """Return True if these units give a recorded score: else they were scored by other rules."""
        return abs(float(aggregators.score(self.sums())[0]) - score) <= TOLERANCE

    def right_U(self) -> NDArray[np.bool_]:
        """Return which units are right: they earned at least half of their points, as VQA's consensus counts."""
        if self.detections:
            return self.detections.right_U
        return np.asarray(2 * self.numerator_UT.sum(1) >= self.layout.denominator_UT.sum(1))


def from_answers(task: str, answers: Sequence[Answer]) -> Contribution:
    """Return a cell's contribution from its journal.

    Raises:
        RecordError: a sample has no scores this benchmark's aggregator can use.
    """
    try:
        answers = sorted(scored(task, answers), key=lambda answer: answer.doc_id)
        names = [unit(task, answer) for answer in answers]
        sums = aggregators.sums(task, [answer.scores for answer in answers], names)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"the journal of {task} holds scores of another dpbench ({type(error).__name__}: {error}); run it again"
        ) from None
    detections = _detections(task, answers, sums)
    first = {name: answer for name, answer in zip(reversed(names), reversed(answers), strict=True)}
    group = {name: at for at, name in enumerate(dict.fromkeys(first[unit].image_group for unit in sums.clusters))}
    layout = Layout(
        np.array([first[unit].doc_id for unit in sums.clusters], dtype=np.int32),
        np.array([group[first[unit].image_group] for unit in sums.clusters], dtype=np.int32),
        (np.ones_like(sums.denominator_CT) if detections else sums.denominator_CT).astype(np.float32),
        sha256("\n".join(group).encode()).hexdigest()[:16],
    )
    return Contribution(layout, sums.numerator_CT.astype(np.float32), detections)


def _detections(task: str, answers: Sequence[Answer], sums: Sums) -> Detections | None:
    """Return what an F1 needs of each answer, in the order of the units; None if the score is none."""
    if tasks.find(task).metric != aggregators.F1:
        return None
    right = [aggregators.is_right(answer.scores[aggregators.F1]) for answer in answers]
    return Detections(sums.denominator_CT.astype(np.float32), np.array(right, dtype=bool))


def scored(task: str, answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that the score counts: without units of which some sample is too long for the model."""
    left_out = {unit(task, answer) for answer in answers if answer.too_long}
    return [answer for answer in answers if not left_out or unit(task, answer) not in left_out]


def unit(task: str, answer: Answer) -> str:
    """Return the name of the unit that a sample is scored in."""
    benchmark = tasks.find(task)
    scores = answer.scores.get(benchmark.metric or "") or {}
    if benchmark.group == "circle":
        return f"circle {scores['index'] % aggregators.ROTATION}"
    if benchmark.group == "question_id" and scores:
        return f"{scores['category']} {scores['question_id']}"
    return str(answer.doc_id)


def pack(folder: Path) -> Path:
    """Write `contributions.npz` of a run from its records and journals; cells it already holds are not read again.

    Raises:
        RecordError: a journal cannot be read.
    """
    records = record.read(folder / "records.jsonl", Record)
    cells = dict(load(folder, records, journals=True))
    path = folder / NAME
    if cells:
        _write(path, cells)
    return path


def _write(path: Path, cells: Mapping[str, Contribution]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    index: dict[str, Any] = {"schema": SCHEMA, "cells": {}, "images": {}}
    for name, cell in sorted(cells.items()):
        key = cell.layout.id
        index["cells"][name], index["images"][key] = key, cell.layout.images
        arrays[f"cell/{name}"] = cell.numerator_UT
        if cell.detections:
            arrays |= {f"detections/{name}/{part}": getattr(cell.detections, part) for part in _OF_DETECTIONS}
        arrays |= {f"layout/{key}/{part}": getattr(cell.layout, part) for part in _PARTS}
    stream = io.BytesIO()
    np.savez_compressed(stream, index=np.array(json.dumps(index, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    files.replace(path, stream.getvalue())


_PARTS = ("unit_U", "cluster_U", "denominator_UT")
_OF_DETECTIONS = ("denominator_UT", "right_U")


def load(folder: Path, records: Iterable[Record], *, journals: bool = True) -> dict[str, Contribution]:
    """Return the contributions of these records, by cell id: from the packed file, else from the journals.

    Raises:
        RecordError: the packed file or a journal cannot be read.
    """
    path = folder / NAME
    cells = _read(path) if path.is_file() else {}
    by_id = {row.cell_id: row for row in records}
    cells = {name: cell for name, cell in cells.items() if name in by_id}
    for name, row in by_id.items():
        lines = folder / "samples" / f"{name}.jsonl"
        if journals and name not in cells and lines.is_file():
            cells[name] = from_answers(row.cell["task"], list(journal.Journal(lines).answers.values()))
    return cells


def stamp(folder: Path, cell_ids: Iterable[str]) -> tuple[int, ...]:
    """Return sizes and times of the files that these cells are read from: as long as they stay, so do the cells."""
    paths = (folder / NAME, *(folder / "samples" / f"{name}.jsonl" for name in cell_ids))
    stats = [path.stat() for path in paths if path.is_file()]
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))


def _read(path: Path) -> dict[str, Contribution]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            index = json.loads(str(arrays["index"]))
            if index["schema"] != SCHEMA:
                raise RecordError(
                    f"{path}: schema {index['schema']!r}, this dpbench reads {SCHEMA}; move the file away"
                )
            layouts = {
                key: Layout(images=images, **{part: arrays[f"layout/{key}/{part}"] for part in _PARTS})
                for key, images in index["images"].items()
            }
            return {
                name: Contribution(layouts[key], arrays[f"cell/{name}"], _read_detections(arrays, name))
                for name, key in index["cells"].items()
            }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(f"{path} cannot be read ({error}); delete it, a run writes it anew") from None


def _read_detections(arrays: Mapping[str, NDArray[Any]], name: str) -> Detections | None:
    parts = {part: f"detections/{name}/{part}" for part in _OF_DETECTIONS}
    return (
        Detections(**{part: arrays[key] for part, key in parts.items()}) if set(parts.values()) <= set(arrays) else None
    )
