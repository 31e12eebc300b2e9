"""How many answers a manifest asks for: its cells by task, and each task's questions and images. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpbench import tasks
from dpbench.errors import DpbenchError
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.schema import Manifest
from dpbench.tasks.data.root import data_files

ANSWER_LIMIT = re.compile(r"^ +max_new_tokens: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TaskLoad:
    """One task on one backbone.

    Attributes:
        task: its name.
        num_questions: asked by each cell.
        num_images: distinct ones; None if unknown, then at most one a question.
        answer_limit: tokens of an answer, at most.
        cells: of the task.
    """

    task: str
    num_questions: int
    num_images: int | None
    answer_limit: int
    cells: tuple[Cell, ...]

    @property
    def num_answers(self) -> int:
        """Return how many answers all cells need."""
        return self.num_questions * len(self.cells)

    @property
    def most_images(self) -> int:
        """Return the number of images, or the most there can be."""
        return self.num_questions if self.num_images is None else self.num_images


def load_tasks(part: Manifest, data_root: Path | None) -> list[TaskLoad]:
    """Return the tasks of a manifest with one backbone, in order.

    Sizes are those of the benchmarks as published, or, where the data is there and smaller, of the data.
    """
    by_task: dict[str, list[Cell]] = {}
    for cell in cells(part):
        by_task.setdefault(cell.task, []).append(cell)
    return [_task_load(name, by_task[name], part.protocol.limit, data_root) for name in dict.fromkeys(part.tasks)]


def _task_load(name: str, listed: Sequence[Cell], limit: int | None, data_root: Path | None) -> TaskLoad:
    benchmark = tasks.find(name)
    whole, images = benchmark.num_asked, benchmark.num_images
    rows = _count_rows(name, data_root)
    if rows is not None and rows != benchmark.num_rows:  # a mirror, or a part of the benchmark
        whole, images = min(rows, whole), _count_rows(name, data_root, benchmark.images) if benchmark.images else None
    asked = whole if limit is None else min(limit, whole)
    # questions about one image stand side by side, so a limit reaches its share of the images
    reached = None if images is None else min(asked, -(-images * asked // whole))
    return TaskLoad(name, asked, reached, answer_limit(name), tuple({cell.id: cell for cell in listed}.values()))


def _count_rows(name: str, data_root: Path | None, folder: str | None = None) -> int | None:
    """Return how many rows a benchmark's files have, or None where they are missing or broken."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return sum(int(read_metadata(path).num_rows) for path in data_files(name, data_root, folder))
    except (DpbenchError, ArrowException, OSError):
        return None


def answer_limit(name: str) -> int:
    """Return how many tokens an answer to a task may have."""
    texts = [path.read_text(encoding="utf-8") for path in tasks.yaml_paths(name)]
    return int(next(found[1] for text in texts if (found := ANSWER_LIMIT.search(text))))
