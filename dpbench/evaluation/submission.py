"""Write the file that a benchmark's server scores, from the journal of a finished cell. No torch.

VQAv2 test-dev has no public answers: run `vqav2_testdev`, write the file, upload it at EvalAI, "VQA Challenge".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpbench.errors import RecordError
from dpbench.storage import files
from dpbench.storage.journal import Answer, Journal


def rows(answers: Iterable[Answer], unasked: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Return one {"question_id", "answer"} per question, sorted by question.

    Args:
        answers: of one cell.
        unasked: the other questions of the test set; they get an empty answer, since EvalAI expects a row for each.

    Raises:
        RecordError: the task is not scored by a server, or a question is answered twice.
    """
    texts: dict[int, str] = dict.fromkeys(unasked, "")
    answered: set[int] = set()
    for answer in answers:
        if "submission" not in answer.scores:
            raise RecordError(f"task {answer.task}: it is not scored by a server; run vqav2_testdev")
        row = answer.scores["submission"]
        question = row["question_id"]
        if question in answered:
            raise RecordError(f"task {answer.task}: question {question} is answered twice; run the cell again")
        answered.add(question)
        texts[question] = row["answer"]
    return [{"question_id": question, "answer": texts[question]} for question in sorted(texts)]


def write(journal: Path, out: Path, unasked: Iterable[int] = ()) -> int:
    """Write the file for a cell's journal; return how many questions it answers.

    Raises:
        RecordError: there is no such journal, or `rows` rejects its answers.
    """
    if not journal.is_file():
        raise RecordError(f"{journal}: there is no such journal; it is samples/<cell id>.jsonl in the run's folder")
    answers = list(Journal(journal).answers.values())
    files.replace(out, json.dumps(rows(answers, unasked)).encode())
    return len(answers)
