"""A task of lmms-eval of which some samples are left out: those that cannot be asked, and those that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dpbench.tasks.lmms_eval_quiet  # noqa: F401 it stops the log of the next import

# isort: split
from lmms_eval.api.task import ConfigurableTask

LEFT_OUT = "\0left out"
"""Stands in lmms-eval for the answer to a sample that no metric counts; no model can give it."""
UNASKABLE = "\0"
"""Begins the prompt of a sample that cannot be asked."""
ASKED = ("question", "choices", "choice_a", "choice_b", "choice_c", "choice_d")
"""Columns without which a sample has no question; MMBench's rows may lack options, hints and OCR tokens anyway."""


class PartialTask(ConfigurableTask):  # type: ignore[misc]
    """A task of which some samples are left out of every metric: those whose answer is `LEFT_OUT`."""

    def doc_to_text(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the sample's prompt, or after `UNASKABLE` why it has none: that fails the sample, not the task."""
        empty = _empty_column(doc)
        if empty:
            return f"{UNASKABLE}{empty} is empty"
        if "choices" in doc and doc["hint"] is None:  # ScienceQA, whose prompt would begin with "None"
            doc = {**doc, "hint": ""}
        return super().doc_to_text(doc, *args, **kwargs)

    def doc_to_target(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the truth, or None of a sample that cannot be asked and has none without its options."""
        try:
            return super().doc_to_target(doc, *args, **kwargs)
        except (TypeError, LookupError):
            if _empty_column(doc):
                return None
            raise

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """Return the sample's contribution to each metric, none if it is left out."""
        return {} if results[0] == LEFT_OUT else super().process_results(doc, results, *args, **kwargs)


def _empty_column(doc: Mapping[str, Any]) -> str | None:
    """Return the first of a sample's columns that has to hold something and does not, or None."""
    return next((name for name in ASKED if name in doc and _is_empty(doc[name])), None)


def _is_empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value in (None, [])
