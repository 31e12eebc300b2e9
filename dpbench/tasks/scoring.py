"""What the tasks' YAML files need beyond lmms-eval's own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def circular_percent(results: Sequence[Mapping[str, Any]]) -> float:
    """Return MMBench's CircularEval accuracy, 0-100: a question counts if every rotation of it is right.

    lmms-eval's evaluator with its static rule, which reads letters without calling a language model.
    """
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    overall, _, _ = MMBench_Evaluator().eval_result(results, eval_method="static")
    return float(overall) * 100


def images_only(dataset: Dataset) -> Dataset:
    """Keep SEED-Bench's image questions."""
    return dataset.filter(lambda kind: kind == "image", input_columns=["data_type"])


def mme_maximum(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the highest MME score these samples allow: 200 per category present."""
    return 200.0 * len({result["category"] for result in results})
