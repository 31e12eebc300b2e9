"""The lmms-eval adapter: tasks in, requests out, scores back. The only module (with `tasks/`) that imports lmms_eval.

Two passes. `build` loads a task's data once and lists its requests; the runner answers them for every cell into
journals; `score` lets lmms-eval score a cell through a model that only looks its answers up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
from loguru import logger as eval_logger
from PIL.Image import Image
from tenacity import RetryError

from dpbench import tasks
from dpbench.errors import ConfigError, DpbenchError

eval_logger.disable("lmms_eval")

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.api.task import ConfigurableTask  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from lmms_eval.tasks.mme.utils import eval_type_dict  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402

PERCEPTION = frozenset(eval_type_dict["Perception"])


@dataclass(frozen=True, slots=True)
class Request:
    """One sample as lmms-eval asks it.

    Attributes:
        task: as in `dpbench.tasks.TASKS`.
        doc_id: the sample's number in its split.
        text: the whole prompt after the image.
        max_new_tokens: length limit.
        until: strings at which the answer ends.
    """

    task: str
    doc_id: int
    text: str
    max_new_tokens: int
    until: tuple[str, ...]

    @property
    def prompt_hash(self) -> str:
        """Return what tells this prompt from another wording of it."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BuiltTask:
    """A task with its data loaded, and the requests within the limit."""

    name: str
    task: ConfigurableTask
    requests: tuple[Request, ...]

    def images(self, request: Request) -> list[Image]:
        """Decode a sample's images."""
        return list(self.task.doc_to_visual(self.task.test_docs()[request.doc_id]))

    def scores(self, request: Request, answer: str) -> dict[str, Any]:
        """Return what lmms-eval makes of one answer."""
        doc = self.task.test_docs_no_media()[request.doc_id]
        with _unwrapped():
            return dict(self.task.process_results(doc, [answer]))


@dataclass(frozen=True, slots=True)
class Scores:
    """What lmms-eval reports for one cell: its metrics, and per sample what they were made of."""

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]


class LookUp(lmms):  # type: ignore[misc]
    """A model that answers from a journal and never generates."""

    is_simple = True

    def __init__(self, cell_id: str, answer: Callable[[int, str], str]) -> None:
        super().__init__()
        self.cell_id = cell_id
        self.answer = answer

    def __repr__(self) -> str:
        """Name the cell: lmms-eval keys caches on this."""
        return f"dpbench:{self.cell_id}"

    def clean(self) -> None:
        """Keep everything; lmms-eval's own version deletes the model."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Look every answer up."""
        found = [self.answer(request.args[3], request.args[0]) for request in requests]
        return [GenerationResult(text, TokenCounts()) for text in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: none of the ten tasks has several rounds."""
        raise DpbenchError("dpbench's tasks have one round")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: all ten tasks generate."""
        raise DpbenchError("dpbench's tasks generate")


def build(name: str, data_root: Path | None, *, limit: int | None, ocr: bool = False) -> BuiltTask:
    """Load a task's data and list its requests.

    Args:
        name: as in `dpbench.tasks.TASKS`.
        data_root: where the data lies, or None for the hub's cache.
        limit: at least so many samples, in whole groups (MME pairs, MMBench circles).
        ocr: give TextVQA's OCR tokens in the prompt.

    Raises:
        MissingError: the data is not there.
    """
    known = tasks.find(name)
    with _quiet(), _unwrapped():
        config = load_yaml_config(str(tasks.yaml_path(name)))
        config |= {"dataset_path": "parquet", "dataset_name": None}
        config["dataset_kwargs"] = {
            "data_files": {known.split: [str(path) for path in tasks.data_files(name, data_root)]}
        }
        if known.images:
            config["doc_to_visual"] = _looked_up(tasks.data_files(name, data_root, known.images))
        if ocr and name == "textvqa":
            config["lmms_eval_specific_kwargs"]["default"]["ocr"] = True
        task = ConfigurableTask(config=config, model_name="dpbench")
        stop = whole_groups(known, task, limit)
        _check_scored(known, task, stop)
        task.build_all_requests(limit=stop)
    return BuiltTask(name, task, tuple(_request(name, instance) for instance in task.instances))


def _looked_up(paths: Sequence[Path]) -> Callable[[Mapping[str, Any]], list[Image]]:
    """Return a `doc_to_visual` that finds GQA's images by id, decoding one at a time."""
    table = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    row_of = {image_id: row for row, image_id in enumerate(table["id"])}
    return lambda doc: [table[row_of[doc["imageId"]]]["image"].convert("RGB")]


def _request(name: str, instance: Instance) -> Request:
    text, generation, _, doc_id, _, _ = instance.args
    until = generation.get("until") or ()
    return Request(
        task=name,
        doc_id=doc_id,
        text=text,
        max_new_tokens=generation["max_new_tokens"],
        until=(until,) if isinstance(until, str) else tuple(until),
    )


def whole_groups(known: tasks.Task, task: ConfigurableTask, limit: int | None) -> int | None:
    """Return the smallest number of samples, at least `limit`, that splits no group."""
    if limit is None or known.column is None:
        return limit
    column = list(task.test_docs_no_media()[known.column])
    keys = [value % 1_000_000 for value in column] if known.group == "circle" else column
    last = {key: at for at, key in enumerate(keys)}
    stop, at = min(limit, len(keys)), 0
    while at < stop:
        stop = max(stop, last[keys[at]] + 1)
        at += 1
    return stop


def _check_scored(known: tasks.Task, task: ConfigurableTask, stop: int | None) -> None:
    """Refuse a limit within which MME has no perception question: lmms-eval would report no such score.

    Raises:
        ConfigError: says which limit would do.
    """
    if known.percent != "mme" or stop is None:
        return
    perception = [at for at, kind in enumerate(task.test_docs_no_media()["category"]) if kind in PERCEPTION]
    if perception and perception[0] >= stop:
        raise ConfigError(f"--limit: MME has no perception question among its first {stop}; give {perception[0] + 1}")


def score(built: BuiltTask, cell_id: str, answers: Mapping[tuple[int, str], str]) -> Scores:
    """Let lmms-eval score a cell's answers.

    Args:
        built: the task, with the same requests the answers are to.
        cell_id: names the look-up model.
        answers: by sample number and prompt.
    """
    settings = argparse.Namespace(process_with_media=False, output_path=os.devnull, reasoning_tags=None)
    model = LookUp(cell_id, lambda doc_id, text: answers[doc_id, text])
    with _quiet(), _unwrapped():
        result = simple_evaluate(
            model=model,
            tasks=[built.task],
            task_manager=_own_tasks(),
            cli_args=settings,
            log_samples=True,
            batch_size=1,
            limit=len(built.requests),
            bootstrap_iters=0,
            verbosity="ERROR",
            process_docs_parallel=1,
        )
    key = f"dpb_{built.name}"
    found = {name.removesuffix(",none"): value for name, value in result["results"][key].items()}
    numbers = {name: float(v) for name, v in found.items() if isinstance(v, int | float) and "_stderr" not in name}
    return Scores(numbers, result["samples"][key])


def percent(name: str, scores: Scores) -> float:
    """Return a task's score on 0-100."""
    known = tasks.find(name)
    value = scores.metrics[known.metric]
    if known.percent == "percent":
        return value
    if known.percent == "ratio":
        return 100 * value
    from dpbench.tasks.scoring import mme_maximum

    parts = [sample[known.metric] for sample in scores.samples if sample.get(known.metric)]
    return 100 * value / mme_maximum(parts)


def _own_tasks() -> TaskManager:
    return TaskManager(
        "ERROR", include_path=str(tasks.yaml_path("gqa").parent), include_defaults=False, model_name="dpbench"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lmms-eval's tables, bars and prints off the terminal; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if not bars:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what really went wrong instead of tenacity's RetryError around it."""
    try:
        yield
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise cause if cause is not None else error from None
