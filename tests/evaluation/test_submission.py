"""VQAv2 test-dev: prompts as for validation, no score, and a file that EvalAI accepts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import TOY_DATA
from rich.console import Console

from dpbench.cli import messages
from dpbench.errors import ConfigError, RecordError
from dpbench.evaluation import runner, submission
from dpbench.evaluation.answering import to_plain
from dpbench.manifest.reading import make_manifest
from dpbench.storage.journal import Answer, Journal
from dpbench.tasks import lmms_eval_adapter, lmms_eval_scores


@pytest.fixture
def built(tmp_path: Path) -> lmms_eval_adapter.BuiltTask:
    (tmp_path / "VQAv2" / "data").mkdir(parents=True)
    for path in (TOY_DATA / "VQAv2" / "data").iterdir():
        shutil.copy(path, tmp_path / "VQAv2" / "data" / path.name.replace("validation", "testdev"))
    return lmms_eval_adapter.build("vqav2_testdev", tmp_path, limit=3)


def write_journal(built: lmms_eval_adapter.BuiltTask, path: Path) -> Path:
    """Journal an answer to each request; only the fields that the submission reads matter."""
    rest: dict[str, Any] = dict.fromkeys(("image_hash", "image_group", "answer"), "")
    rest |= dict.fromkeys(("seed", "shard", "cache_hits", "encoded", "ms"), 0)
    rest |= {"visual_tokens": (), "kept": (), "failure": None}
    for at, request in enumerate(built.requests):
        scores = to_plain(built.scores(request, f"word {at}"))
        fields = {"task": built.name, "doc_id": request.doc_id, "prompt_hash": request.prompt_hash, "scores": scores}
        Journal(path).append([Answer(**rest | fields)])
    return path


def test_a_journal_becomes_evalais_file(built: lmms_eval_adapter.BuiltTask, tmp_path: Path) -> None:
    path = write_journal(built, tmp_path / "journal.jsonl")
    assert submission.write(path, tmp_path / "out.json", unasked=[1, 7]) == 3
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"question_id": 0, "answer": "word 0"},
        {"question_id": 1, "answer": "word 1"},
        {"question_id": 2, "answer": "word 2"},
        {"question_id": 7, "answer": ""},
    ]


def test_test_dev_is_asked_as_validation_and_has_no_score(built: lmms_eval_adapter.BuiltTask) -> None:
    validation = lmms_eval_adapter.build("vqav2", TOY_DATA, limit=3)
    assert [r.text for r in built.requests] == [r.text for r in validation.requests]
    scores = lmms_eval_scores.score(built, "cell", {(r.doc_id, r.text): "no" for r in built.requests})
    assert scores.metrics == {}
    with pytest.raises(ConfigError, match="task vqav2_testdev: only its server can score it"):
        lmms_eval_scores.percent("vqav2_testdev", scores)


def test_other_journals_are_refused(built: lmms_eval_adapter.BuiltTask, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere.jsonl: there is no such journal"):
        submission.write(tmp_path / "nowhere.jsonl", tmp_path / "out.json")
    answers = list(Journal(write_journal(built, tmp_path / "journal.jsonl")).answers.values())
    with pytest.raises(RecordError, match="question 0 is answered twice"):
        submission.rows([*answers, answers[0]])
    path = write_journal(lmms_eval_adapter.build("vqav2", TOY_DATA, limit=1), tmp_path / "other.jsonl")
    with pytest.raises(RecordError, match="task vqav2: it is not scored by a server"):
        submission.write(path, tmp_path / "out.json")


def test_a_run_leaves_the_file_and_no_record(built: lmms_eval_adapter.BuiltTask, tmp_path: Path) -> None:
    wanted = {"name": "server", "backbone": "toy-llava", "methods": ["none"], "tasks": ["vqav2_testdev"]}
    manifest = make_manifest(wanted | {"protocol": {"limit": 3}}, source="a test")
    for _ in range(2):
        outcome = runner.run(manifest, tmp_path / "results", tmp_path, device="cpu", console=Console(quiet=True))
        assert outcome.added == outcome.existing == ()
        assert not outcome.failed
        (path,) = (tmp_path / "results" / "server" / "submissions").iterdir()
        rows = json.loads(path.read_text())
        assert len(rows) == 3
        assert all(set(row) == {"question_id", "answer"} and row["answer"] for row in rows)
    assert "submissions" in messages.format_outcome(outcome, tmp_path / "results" / "server")
