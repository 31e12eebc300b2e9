"""The hard subset: questions that image downsampling to the same budget gets wrong and the unpruned model right.

Chosen from finished cells of the same run folder; MME by pairs, MMBench by circles. numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpbench import record
from dpbench.errors import ConfigError
from dpbench.fingerprint import fingerprints
from dpbench.journal import Answer, Journal
from dpbench.manifest import CHOOSERS, Cell, with_fingerprints
from dpbench.record import Record
from dpbench.report import contributions
from dpbench.tasks import aggregators

Hard = Mapping[str, frozenset[int]]
"""By the id of a cell with a subset, the numbers of its samples in their split."""


def hard(folder: Path, cells: Iterable[Cell], data_root: Path | None) -> Hard:
    """Choose the hard questions of every cell that asks for them.

    Raises:
        ConfigError: the cells they are chosen by are not finished in this run folder; says what to run first.
    """
    finished = {each.cell_id for each in record.read(folder / "records.jsonl", Record)}
    return {each.id: _hard(folder, each, finished, data_root) for each in cells if each.subset}


def _hard(folder: Path, cell: Cell, finished: set[str], data_root: Path | None) -> frozenset[int]:
    none = replace(cell, method="none", params={}, keep=None, prune_rate=None, subset=None)
    easy = replace(cell, method="downsample", params={}, subset=None)
    sources = [with_fingerprints(each, fingerprints(each, data_root)) for each in (none, easy)]
    if missing := [each for each in sources if each.id not in finished]:
        raise ConfigError(
            f"--subset hard: {missing[0].label} is not finished in {folder}; first run the same manifest, with "
            f"{' and '.join(CHOOSERS)} among its methods, without --subset: dpbench run MANIFEST"
        )
    unpruned, smaller = (_answers(folder, each) for each in sources)
    whole, shrunk = (contributions.of_answers(cell.task, each) for each in (unpruned, smaller))
    wanted = set(whole.layout.unit_U[whole.right_U() & ~shrunk.right_U()].tolist())
    chosen = {contributions.unit(cell.task, each) for each in unpruned if each.doc_id in wanted}
    return frozenset(each.doc_id for each in unpruned if contributions.unit(cell.task, each) in chosen)


def _answers(folder: Path, cell: Cell) -> list[Answer]:
    return list(Journal(folder / "samples" / f"{cell.id}.jsonl").answers.values())


def known_answers(folder: Path, cell: Cell, chosen: frozenset[int]) -> list[Answer]:
    """Return what the same cell without a subset has already answered of the hard questions."""
    return [each for each in _answers(folder, replace(cell, subset=None)) if each.doc_id in chosen]


def score(task: str, answers: Sequence[Answer]) -> tuple[dict[str, Any], float]:
    """Return the metrics of these answers alone, and their score, 0-100."""
    scores = [each.scores for each in answers]
    value = aggregators.score(contributions.of_answers(task, answers).sums())
    return aggregators.metrics(task, scores), float(np.asarray(value)[0])
