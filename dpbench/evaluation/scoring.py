"""A cell whose samples are all answered: score it and write its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import tasks
from dpbench.evaluation import submission
from dpbench.machine.environment import versions
from dpbench.manifest.cell import Cell
from dpbench.storage import record
from dpbench.storage.journal import Answer, Journal
from dpbench.storage.record import Record

if TYPE_CHECKING:
    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request


@dataclass(frozen=True, slots=True)
class AnsweredCell:
    """A cell, its journal, and the requests that are its samples."""

    cell: Cell
    journal: Journal
    requests: Sequence[Request]

    @property
    def answers(self) -> list[Answer]:
        """Return the answers there are, in the order of the requests."""
        keys = [(each.task, each.doc_id, each.prompt_hash) for each in self.requests]
        return [self.journal.answers[key] for key in keys if key in self.journal.answers]


def finish(folder: Path, answered: AnsweredCell, built: BuiltTask, found: Mapping[str, Any]) -> Record | None:
    """Score a cell whose journal is complete, and append its record.

    A task that only a server scores gets no record: its answers are written to `submissions/`, as the server reads it.

    Args:
        folder: of the run.
        answered: the cell.
        built: its task.
        found: the environment, as in `environment.json`.
    """
    answered.journal.sync()
    if tasks.find(answered.cell.task).metric is None:
        out = submitted(folder, answered.cell)
        out.parent.mkdir(exist_ok=True)
        submission.write(answered.journal.path, out)
        return None
    finished = _scored(answered, built, found)
    record.append(folder / "records.jsonl", finished)
    return finished


def submitted(folder: Path, cell: Cell) -> Path:
    """Return the file that a server is given for a cell."""
    return folder / "submissions" / f"{cell.id}.json"


def tidy(folder: Path) -> None:
    """Sort a run's records, and keep what each sample adds to the scores in one small file."""
    from dpbench.storage import contributions

    record.rewrite(folder / "records.jsonl", record.read(folder / "records.jsonl", Record))
    contributions.pack(folder)


def _scored(answered: AnsweredCell, built: BuiltTask, found: Mapping[str, Any]) -> Record:
    cell, known = answered.cell, answered.answers
    metrics, score = _score(answered, built)
    read = [answer.visual_tokens for answer in known if answer.visual_tokens]
    return Record(
        cell_id=cell.id,
        cell=cell.to_json(),
        metrics=metrics,
        score=score,
        num_samples=len(known),
        num_failed=sum(answer.failure is not None for answer in known),
        visual_tokens_per_layer=tuple(sum(layer) / len(read) for layer in zip(*read, strict=True)),
        feature_cache={
            "hits": sum(answer.cache_hits for answer in known),
            "encoded": sum(answer.encoded for answer in known),
        },
        wall_s=sum(answer.ms for answer in known) / 1000,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        environment=found,
    )


def _score(answered: AnsweredCell, built: BuiltTask) -> tuple[Mapping[str, float], float]:
    """Let lmms-eval score all of a task's answers."""
    from dpbench.tasks import lmms_eval_adapter

    pairs = zip(answered.requests, answered.answers, strict=True)
    scores = lmms_eval_adapter.score(
        built, answered.cell.id, {(each.doc_id, each.text): said.answer for each, said in pairs}
    )
    return scores.metrics, lmms_eval_adapter.percent(answered.cell.task, scores)
