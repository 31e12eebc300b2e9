"""The answers that a page shows: of each row on a benchmark, from its journal, else from the run's packed answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpbench import tasks
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage import journal, packed_answers
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row's answers to a benchmark are.

    Attributes:
        path: its journal, or None.
        packed: what the run's packed file has of them; only looked at without a journal.
    """

    path: Path | None
    packed: Sequence[Answer] = ()

    def read(self) -> Collection[Answer]:
        """Return the answers.

        Raises:
            RecordError: the journal cannot be read.
        """
        return journal.Journal(self.path).answers.values() if self.path else self.packed


def find_sources(comparison: Comparison, task: str) -> dict[RowKey, Source]:
    """Return where the answers of each row to a benchmark are; with several seeds, those of the lowest.

    Raises:
        RecordError: a packed file cannot be read.
    """
    sources: dict[RowKey, Source] = {}
    for key in comparison.rows:
        if paths := _find_journals(comparison, comparison.of(key, task)):
            sources[key] = Source(paths[0])
    missing = {key: comparison.of(key, task) for key in comparison.rows if key not in sources}
    packed = _load_packed(comparison, missing)
    for key, records in missing.items():
        if found := [packed[record.cell_id] for record in records if record.cell_id in packed]:
            sources[key] = Source(None, found[0])
    return {key: sources[key] for key in comparison.rows if key in sources}


def _find_journals(comparison: Comparison, records: Sequence[Record]) -> list[Path]:
    paths = [folder / "samples" / f"{record.cell_id}.jsonl" for record in records for folder in comparison.folders]
    return [path for path in paths if path.is_file()]


def _load_packed(comparison: Comparison, rows: Mapping[RowKey, Sequence[Record]]) -> dict[str, list[Answer]]:
    ids = [record.cell_id for records in rows.values() for record in records]
    cells: dict[str, list[Answer]] = {}
    for folder in comparison.folders if ids else ():
        cells |= packed_answers.load(folder, ids)
    return cells


def answer_fields(task: str, answer: Answer) -> list[Any]:
    """Return an answer as the page's script reads it.

    That is: its text, points 0-1 or None, kept patches or None, the tokens read, and how many of the rows that the last
    layer read are no patch of their own.
    """
    kept = answer.kept[0] if len(answer.kept) == 1 else None
    tokens = round(sum(answer.visual_tokens) / len(answer.visual_tokens), 1) if answer.visual_tokens else None
    others = answer.visual_tokens[-1] - journal.count_indices(kept) if kept and answer.visual_tokens else 0
    return [answer.failure or answer.answer, points(task, answer.scores), kept, tokens, others]


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
