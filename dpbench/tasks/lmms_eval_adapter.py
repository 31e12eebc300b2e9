"""The lmms-eval adapter: a task's data in, requests out. Only `dpbench/tasks/` imports lmms_eval.

There are two passes. `build` loads a task's data once and lists its requests, which the runner answers for every cell.
`dpbench.tasks.lmms_eval_scores` then lets lmms-eval score a cell's answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dpbench import tasks
from dpbench.tasks import scoring, truth
from dpbench.tasks.aggregators import ROTATION
from dpbench.tasks.data.image_file import open_image
from dpbench.tasks.data.root import data_files
from dpbench.tasks.lmms_eval_quiet import explained_locks, quiet, unwrapped, without_download_counts
from dpbench.tasks.partial_task import UNASKABLE, PartialTask
from dpbench.tasks.stored_images import ImageFiles, ImageTable, image_files, literal_paths

# isort: split
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.utils import load_yaml_config


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
    files: ImageFiles
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
        with unwrapped():
            return dict(self.task.process_results(doc, [answer]))


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
        ConfigError: a file is broken or empty, a sample has no right answer or is there twice, or a group is not whole.
    """
    benchmark = tasks.find(name)
    truth.check_files(name, data_files(name, data_root))
    with quiet(), without_download_counts(), explained_locks(), unwrapped():
        config = _load_config(name, ocr=ocr, wording=wording, reading=reading)
        config["dataset_kwargs"] = {"data_files": {benchmark.split: literal_paths(data_files(name, data_root))}}
        table = ImageTable.load(data_files(name, data_root, benchmark.images)) if benchmark.images else None
        task = PartialTask(config=config, model_name=wording)
        truth.check_groups(name, task.test_docs_no_media())
        stop = round_up_to_groups(benchmark, task, limit)
        truth.check_samples(name, task.test_docs_no_media(), stop)
        task.build_all_requests(limit=stop)
    requests = tuple(_request(name, instance) for instance in task.instances)
    files = table.files(task.test_docs_no_media()) if table else image_files(task.test_docs())
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
