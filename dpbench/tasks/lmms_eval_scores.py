"""Which score does lmms-eval give to answers that are known? It asks a model that only looks them up."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpbench import tasks
from dpbench.errors import ConfigError, DpbenchError
from dpbench.tasks import scoring
from dpbench.tasks.lmms_eval_adapter import BuiltTask
from dpbench.tasks.lmms_eval_quiet import quiet, unwrapped
from dpbench.tasks.partial_task import LEFT_OUT

# isort: split
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


@dataclass(frozen=True, slots=True)
class Scores:
    """What lmms-eval reports for one cell: its metrics, and the results of each sample that they are made of."""

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]


class LookUp(lmms):  # type: ignore[misc]
    """A model that looks up its answers and never generates."""

    is_simple = True

    def __init__(self, cell_id: str, answer: Callable[[int, str], str]) -> None:
        super().__init__()
        self.cell_id = cell_id
        self.answer = answer

    def __repr__(self) -> str:
        """Name the cell: lmms-eval uses this as a cache key."""
        return f"dpbench:{self.cell_id}"

    def clean(self) -> None:
        """Do nothing; lmms-eval's own version deletes the model."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Look up every answer, by sample number and prompt."""
        texts = [self.answer(request.args[3], request.args[0]) for request in requests]
        return [GenerationResult(text, TokenCounts()) for text in texts]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse; none of the ten tasks has several rounds."""
        raise DpbenchError("dpbench's tasks have one round")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse; all ten tasks generate."""
        raise DpbenchError("dpbench's tasks generate")


def score(
    built: BuiltTask, cell_id: str, answers: Mapping[tuple[int, str], str], left_out: Collection[int] = ()
) -> Scores:
    """Let lmms-eval score a cell's answers.

    Args:
        built: the task, with the requests that were answered.
        cell_id: names the look-up model.
        answers: by sample number and prompt.
        left_out: numbers of the samples that no metric counts; whole groups, and not all.
    """
    settings = argparse.Namespace(process_with_media=False, output_path=os.devnull, reasoning_tags=None)
    model = LookUp(cell_id, lambda doc_id, text: LEFT_OUT if doc_id in left_out else answers[doc_id, text])
    with quiet(), unwrapped():
        result = simple_evaluate(
            model=model,
            tasks=[built.task],
            task_manager=_task_manager(),
            cli_args=settings,
            log_samples=True,
            batch_size=1,
            limit=len(built.requests),
            bootstrap_iters=0,
            verbosity="ERROR",
            process_docs_parallel=1,
        )
    key = f"dpb_{built.name}"
    metrics = {
        name.removesuffix(",none"): float(value)  # "none" is the filter, and part of every metric's name
        for name, value in result["results"][key].items()
        if isinstance(value, int | float) and "_stderr" not in name
    }
    return Scores(metrics, result["samples"][key])


def percent(name: str, scores: Scores) -> float:
    """Return a task's score, 0-100.

    Raises:
        ConfigError: only a server can score it.
    """
    benchmark = tasks.find(name)
    if benchmark.metric is None:
        raise ConfigError(f"task {name}: only its server can score it; see dpbench.evaluation.submission")
    value = scores.metrics[benchmark.metric]
    if benchmark.percent == "percent":
        return value
    if benchmark.percent == "ratio":
        return 100 * value
    parts = [sample[benchmark.metric] for sample in scores.samples if sample.get(benchmark.metric)]
    return 100 * value / scoring.mme_maximum(parts)


def _task_manager() -> TaskManager:
    """Return a manager that knows dpbench's tasks only: indexing lmms-eval's own takes seconds."""
    return TaskManager(
        "ERROR", include_path=str(tasks.yaml_path("gqa").parent), include_defaults=False, model_name="dpbench"
    )
