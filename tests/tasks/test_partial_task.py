"""A sample with nothing to ask fails by itself; a null that lmms-eval would print as a word is none."""

from functools import cache
from typing import Any

import pytest
from places import TOY_DATA

from dpbench import tasks
from dpbench.tasks import lmms_eval_adapter
from dpbench.tasks.partial_task import UNASKABLE


@cache
def task(name: str) -> Any:
    return lmms_eval_adapter.build(name, TOY_DATA, limit=1).task


def prompt(name: str, **changed: Any) -> str:
    doc = task(name).test_docs_no_media()[0]
    return str(task(name).doc_to_text(doc | changed))


@pytest.mark.parametrize("name", [name for name, benchmark in tasks.TASKS.items() if benchmark.metric])
@pytest.mark.parametrize("question", [None, "", "  ", "\n"])
def test_a_question_of_nothing_cannot_be_asked(name: str, question: str | None) -> None:
    assert prompt(name, question=question) == f"{UNASKABLE}question is empty"


@pytest.mark.parametrize(
    ("name", "changed", "column"),
    [
        ("scienceqa", {"choices": None}, "choices"),
        ("scienceqa", {"choices": []}, "choices"),
        ("seedbench", {"choice_a": None}, "choice_a"),
        ("seedbench", {"choice_d": " "}, "choice_d"),
    ],
)
def test_a_question_without_its_options_cannot_be_asked(name: str, changed: dict[str, Any], column: str) -> None:
    assert prompt(name, **changed) == f"{UNASKABLE}{column} is empty"


@pytest.mark.parametrize(("name", "empty"), [("scienceqa", ""), ("mmbench_en", "nan"), ("mmbench_cn", "nan")])
def test_a_null_hint_is_no_hint(name: str, empty: str) -> None:
    assert prompt(name, hint=None) == prompt(name, hint=empty)
    assert "None" not in prompt(name, hint=None)
