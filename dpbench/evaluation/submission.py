"""The file that a benchmark's server scores, from the journal of a finished cell. No torch.

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
    """Return one {"question_id", "answer"} per question, in the order of their numbers.

    Args:
        answers: of one cell.
        unasked: the other questions of the test set, whose answer is left empty: EvalAI wants a row for each.

    Raises:
        RecordError: the cell is of a task that is scored here, or answered a question twice.
    """
    found: dict[int, str] = dict.fromkeys(unasked, "")
    answered: set[int] = set()
    for each in answers:
        if "submission" not in each.scores:
            raise RecordError(f"task {each.task}: no server scores its answers; run vqav2_testdev")
        row = each.scores["submission"]
        if row["question_id"] in answered:
            raise RecordError(f"task {each.task}: question {row['question_id']} is answered twice; run the cell again")
        answered.add(row["question_id"])
        found[row["question_id"]] = row["answer"]
    return [{"question_id": number, "answer": found[number]} for number in sorted(found)]


def write(journal: Path, out: Path, unasked: Iterable[int] = ()) -> int:
    """Write the file for a cell's journal, and return how many questions it answers.

    Raises:
        RecordError: there is no such journal, or `rows` refuses it.
    """
    if not journal.is_file():
        raise RecordError(f"{journal}: there is no such journal; it is samples/<cell id>.jsonl in the run's folder")
    answers = list(Journal(journal).answers.values())
    files.replace(out, json.dumps(rows(answers, unasked)).encode())
    return len(answers)
