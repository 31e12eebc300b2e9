"""Score a cell whose samples are all answered, and write its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import tasks
from dpbench.errors import UnsupportedError
from dpbench.evaluation import submission
from dpbench.machine.environment import versions
from dpbench.manifest.cell import Cell
from dpbench.storage import record
from dpbench.storage.journal import Answer, Journal
from dpbench.storage.record import Record

if TYPE_CHECKING:
    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request


@dataclass(frozen=True, slots=True)
class CellAnswers:
    """A cell, its journal, and the requests of its samples."""

    cell: Cell
    journal: Journal
    requests: Sequence[Request]

    @property
    def answers(self) -> list[Answer]:
        """Return the answers in the journal, in the order of the requests."""
        keys = [(request.task, request.doc_id, request.prompt_hash) for request in self.requests]
        return [self.journal.answers[key] for key in keys if key in self.journal.answers]


def finish(folder: Path, answered: CellAnswers, built: BuiltTask, environment: Mapping[str, Any]) -> Record | None:
    """Score a cell whose journal is complete, and append its record.

    If only a server can score the task, there is no record: the answers are written to `submissions/` for upload.

    Args:
        folder: of the run.
        answered: the cell.
        built: its task.
        environment: of the processes that answered, as in `environment.json`.

    Raises:
        UnsupportedError: no sample fits into the model's context, or all failed.
    """
    answered.journal.sync()
    if tasks.find(answered.cell.task).metric is None:
        out = submission_path(folder, answered.cell)
        out.parent.mkdir(exist_ok=True)
        submission.write(answered.journal.path, out)
        return None
    finished = _build_record(answered, built, environment)
    record.append(folder / "records.jsonl", finished)
    return finished


def submission_path(folder: Path, cell: Cell) -> Path:
    """Return the file with a cell's answers for the benchmark's server."""
    return folder / "submissions" / f"{cell.id}.json"


def sort_and_pack_records(folder: Path) -> None:
    """Sort a run's records, and pack what outlives its journals: what samples contribute, and some of the answers."""
    from dpbench.storage import contributions, packed_answers

    record.rewrite(folder / "records.jsonl", record.read(folder / "records.jsonl", Record))
    contributions.pack(folder)
    packed_answers.pack(folder)


def _build_record(answered: CellAnswers, built: BuiltTask, environment: Mapping[str, Any]) -> Record:
    cell, answers = answered.cell, answered.answers
    scored = _scored(cell, answers)
    metrics, score = _score(answered, built, scored)
    counts = [answer.visual_tokens for answer in scored if answer.visual_tokens]
    return Record(
        cell_id=cell.id,
        cell=cell.to_json(),
        metrics=metrics,
        score=score,
        num_samples=len(scored),
        num_failed=sum(answer.failure is not None for answer in scored),
        num_too_long=len(answers) - len(scored),
        visual_tokens_per_layer=tuple(sum(layer) / len(counts) for layer in zip(*counts, strict=True)),
        feature_cache={
            "hits": sum(answer.cache_hits for answer in answers),
            "encoded": sum(answer.encoded for answer in answers),
        },
        wall_s=sum(answer.ms for answer in answers) / 1000,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        environment=environment,
    )


def _scored(cell: Cell, answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that count: without those to samples, or groups with samples, that are too long.

    Raises:
        UnsupportedError: none is left, or all failed: a score of 0 would look like a score.
    """
    from dpbench.storage import contributions

    scored = contributions.scored(cell.task, answers)
    if not scored:
        reason = next((answer.failure for answer in answers if answer.too_long), "no sample was asked")
        raise UnsupportedError(
            f"task {cell.task}: no sample fits into the context of {cell.backbone}, for instance: {reason}; "
            "remove the task"
        )
    if all(answer.failure for answer in scored):
        raise UnsupportedError(
            f"task {cell.task}: none of the {len(scored)} samples could be answered, for instance: {scored[0].failure}"
        )
    return scored


def _score(answered: CellAnswers, built: BuiltTask, scored: Sequence[Answer]) -> tuple[Mapping[str, float], float]:
    """Score a task's answers with lmms-eval; return its metrics and the score in percent."""
    from dpbench.tasks import lmms_eval_scores

    pairs = zip(answered.requests, answered.answers, strict=True)
    texts = {(request.doc_id, request.text): answer.answer for request, answer in pairs}
    left_out = {answer.doc_id for answer in answered.answers} - {answer.doc_id for answer in scored}
    scores = lmms_eval_scores.score(built, answered.cell.id, texts, left_out)
    return scores.metrics, lmms_eval_scores.percent(answered.cell.task, scores)
