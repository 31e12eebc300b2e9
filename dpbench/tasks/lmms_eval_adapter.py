"""The lmms-eval adapter: tasks in, requests out, scores back. Only `dpbench/tasks/` imports lmms_eval.

There are two passes. `build` loads a task's data once and lists its requests, which the runner answers for every cell.
`score` lets lmms-eval score a cell through a model that only looks up its answers in the journal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
from datasets import Image as ImageColumn
from loguru import logger as eval_logger
from PIL.Image import Image
from tenacity import RetryError

from dpbench import tasks
from dpbench.errors import ConfigError, DpbenchError
from dpbench.storage.locks import explain_missing_locks
from dpbench.tasks import scoring, truth
from dpbench.tasks.aggregators import ROTATION
from dpbench.tasks.data.image_file import open_image
from dpbench.tasks.data.root import data_files

eval_logger.disable("lmms_eval")  # before the imports below, which log

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.api.task import ConfigurableTask  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402

LEFT_OUT = "\0left out"
"""Stands in lmms-eval for the answer to a sample that no metric counts; no model can give it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sample, with the prompt and limits of lmms-eval.

    Attributes:
        task: as in `dpbench.tasks.TASKS`.
        doc_id: the sample's number in its split.
        text: the whole prompt after the image.
        max_new_tokens: length limit of the answer.
        until: strings that end the answer.
    """

    task: str
    doc_id: int
    text: str
    max_new_tokens: int
    until: tuple[str, ...]

    @property
    def failure(self) -> str | None:
        """Return why the sample cannot be asked, or None."""
        return self.text.removeprefix(UNASKABLE) if self.text.startswith(UNASKABLE) else None

    @property
    def prompt_hash(self) -> str:
        """Return a SHA-256 prefix of the prompt, which changes with its wording."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BuiltTask:
    """A task with its data loaded, and the requests within the limit.

    Attributes:
        name: as in `dpbench.tasks.TASKS`.
        task: lmms-eval's.
        requests: in the order of the data.
        files: returns the image files of a sample, by its number, undecoded.
        hashes: SHA-256 prefixes of these files, by sample number; filled on demand.
    """

    name: str
    task: ConfigurableTask
    requests: tuple[Request, ...]
    files: Callable[[int], list[bytes]]
    hashes: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def image_hashes(self, request: Request) -> tuple[str, ...]:
        """Return a SHA-256 prefix over the file of each of a sample's images; nothing is decoded."""
        if request.doc_id not in self.hashes:
            images = self.files(request.doc_id)
            self.hashes[request.doc_id] = tuple(sha256(image).hexdigest()[:16] for image in images)
        return self.hashes[request.doc_id]

    def image_group(self, request: Request) -> str:
        """Return a name that samples with the same image or images share."""
        hashes = self.image_hashes(request)
        return hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()[:16]

    def images(self, request: Request) -> list[Image]:
        """Open a sample's images, RGB; raises as `open_image`.

        Differs from lmms-eval: images of more than eight bits are scaled, not clipped.
        """
        return [open_image(file) for file in self.files(request.doc_id)]

    def scores(self, request: Request, answer: str) -> dict[str, Any]:
        """Return what lmms-eval's `process_results` returns for one answer."""
        doc = self.task.test_docs_no_media()[request.doc_id]
        with _unwrapped():
            return dict(self.task.process_results(doc, [answer]))


UNASKABLE = "\0"
"""Begins the prompt of a sample that cannot be asked."""
ASKED = ("question", "choices", "choice_a", "choice_b", "choice_c", "choice_d")
"""Columns without which a sample has no question; MMBench's rows may lack options, hints and OCR tokens anyway."""


class PartialTask(ConfigurableTask):  # type: ignore[misc]
    """A task of which some samples are left out of every metric: those whose answer is `LEFT_OUT`."""

    def doc_to_text(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the sample's prompt, or after `UNASKABLE` why it has none: that fails the sample, not the task."""
        empty = _empty_column(doc)
        return f"{UNASKABLE}{empty} is empty" if empty else super().doc_to_text(doc, *args, **kwargs)

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
    return next((name for name in ASKED if name in doc and doc[name] in (None, "", [])), None)


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


def build(
    name: str,
    data_root: Path | None,
    *,
    limit: int | None,
    ocr: bool = False,
    wording: str = "lmms-eval",
    reading: str = "first-word",
) -> BuiltTask:
    """Load a task's data and list its requests.

    Args:
        name: as in `dpbench.tasks.TASKS`.
        data_root: folder of the data, or None for the hub's cache.
        limit: number of samples, rounded up to whole groups (MME pairs, MMBench circles); None for all.
        ocr: put TextVQA's OCR tokens into the prompt.
        wording: whose prompts, "lmms-eval" or "llava"; the task's YAML has a block of each name where they differ.
        reading: how an answer is read, by dpbench's table of forms ("first-word") or as "llava".

    Raises:
        MissingError: the data is missing.
        ConfigError: a sample has no right answer, or a group is not whole.
    """
    benchmark = tasks.find(name)
    with _quiet(), _without_download_counts(), _explained_locks(), _unwrapped():
        config = _load_config(name, ocr=ocr, wording=wording, reading=reading)
        config["dataset_kwargs"] = {"data_files": {benchmark.split: _literal(data_files(name, data_root))}}
        table = ImageTable.load(data_files(name, data_root, benchmark.images)) if benchmark.images else None
        task = PartialTask(config=config, model_name=wording)
        stop = round_up_to_groups(benchmark, task, limit)
        truth.check(name, task.test_docs_no_media(), stop)
        task.build_all_requests(limit=stop)
    requests = tuple(_request(name, instance) for instance in task.instances)
    files = table.files(task) if table else _files(task.test_docs())
    if benchmark.middle_frame:
        return BuiltTask(name, task, requests, lambda doc_id: [scoring.middle(files(doc_id))])
    return BuiltTask(name, task, requests, files)


def _load_config(name: str, *, ocr: bool, wording: str, reading: str) -> dict[str, Any]:
    """Return a task's YAML with the functions and settings of a protocol, to be read from parquet files.

    lmms-eval takes the block of `lmms_eval_specific_kwargs` that has the name of the model, which is the wording here,
    else the block "default".
    """
    config: dict[str, Any] = load_yaml_config(str(tasks.yaml_path(name)))
    config |= {"dataset_path": "parquet", "dataset_name": None}
    blocks = config.get("lmms_eval_specific_kwargs", {})
    if wording in blocks:
        config["doc_to_text"] = blocks[wording]["doc_to_text"]
    for block in blocks.values():
        if "ocr" in block:
            block["ocr"] = ocr
    benchmark = tasks.find(name).variant_of or name
    if reading == "llava" and benchmark in scoring.OF_LLAVA:
        config["process_results"] = scoring.OF_LLAVA[benchmark]
    return config


def _explained_locks() -> contextlib.AbstractContextManager[None]:
    """Name the cache of `datasets` where its file system has no locks."""
    return explain_missing_locks(
        Path(datasets.config.HF_DATASETS_CACHE), "set HF_DATASETS_CACHE to a folder on a local disk"
    )


def _literal(paths: Sequence[Path]) -> list[str]:
    """Return paths that `datasets` takes literally.

    It reads [, ? and * as patterns, so they are escaped. Patterns do not follow linked folders, so those are resolved.
    """
    return [escape(str(path.parent.resolve() / path.name)) for path in paths]


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Images that are stored apart from their questions (GQA), by id."""

    images: datasets.Dataset
    row_of: Mapping[str, int]

    @classmethod
    def load(cls, paths: Sequence[Path]) -> ImageTable:
        """Open a split of images with their ids."""
        images = datasets.load_dataset("parquet", data_files=_literal(paths), split="train")
        return cls(images, {image_id: row for row, image_id in enumerate(images["id"])})

    def files(self, task: ConfigurableTask) -> Callable[[int], list[bytes]]:
        """Return a function that reads the image file of a sample, by its number."""
        ids, file_of = task.test_docs_no_media()["imageId"], _files(self.images)
        return lambda doc_id: file_of(self.row_of[ids[doc_id]]) if ids[doc_id] in self.row_of else [b""]


def _files(docs: datasets.Dataset) -> Callable[[int], list[bytes]]:
    """Return a function that reads the image files of a row without decoding them."""
    columns = [name for name, kind in docs.features.items() if isinstance(getattr(kind, "feature", kind), ImageColumn)]
    rows = docs.select_columns(columns).with_format("arrow")

    def read(row: int) -> list[bytes]:
        cells = [cell for column in rows[row].columns for cell in column.to_pylist()]
        return [_read_entry(entry) for cell in cells for entry in (cell if isinstance(cell, list) else [cell])]

    return read


def _read_entry(entry: Mapping[str, Any] | None) -> bytes:
    """Return an image file; empty if the row has none, which decoding reports later."""
    if entry is None:
        return b""
    if entry["bytes"] is None and entry["path"] is not None:
        return Path(entry["path"]).read_bytes()
    return entry["bytes"] or b""


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


def round_up_to_groups(benchmark: tasks.Task, task: ConfigurableTask, limit: int | None) -> int | None:
    """Return the smallest number of samples, at least `limit`, that splits no group."""
    if limit is None or benchmark.column is None:
        return limit
    column = list(task.test_docs_no_media()[benchmark.column])
    keys = [value % ROTATION for value in column] if benchmark.group == "circle" else column
    last = {key: at for at, key in enumerate(keys)}
    stop, at = min(limit, len(keys)), 0
    while at < stop:  # a group that begins before `stop` must end before it, which may bring in further groups
        stop = max(stop, last[keys[at]] + 1)
        at += 1
    return stop


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
    with _quiet(), _unwrapped():
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide lmms-eval's tables, progress bars and prints; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if not bars:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def _without_download_counts() -> Iterator[None]:
    """Stop `datasets` from reporting every load, even of local files, to a server; offline it waits for a timeout."""
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    # The only switch: `datasets` reads its environment variable once, at import, which other code may have done before.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting  # as it was before


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the error itself instead of the RetryError that lmms-eval's tenacity wraps it in."""
    try:
        yield
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise cause if cause is not None else error from None
