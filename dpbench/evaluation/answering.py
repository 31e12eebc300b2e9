"""Answer one task's samples for many cells, image by image: encode once, prune for each cell, generate, journal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import registry
from dpbench.engine import answers, decision, forward, pruned_prompt
from dpbench.engine.answers import Reply
from dpbench.engine.encoding import Encoder, Sample
from dpbench.engine.feature_cache import FeatureCache
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.evaluation.outcome import MAX_FAILED_RATIO
from dpbench.evaluation.sharding import WHOLE, Shard
from dpbench.machine.out_of_memory import BatchLimiter
from dpbench.manifest.cell import Cell
from dpbench.method import Budget, Method
from dpbench.storage.journal import Answer, Journal, pack_indices

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone
    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request


@dataclass(frozen=True, slots=True)
class ActiveCell:
    """A pending cell with its method bound, its journal open, and a limit on how many samples fit into memory.

    `raised` holds what samples of this run raised.
    """

    cell: Cell
    method: Method
    journal: Journal
    limiter: BatchLimiter
    shard: Shard = WHOLE
    raised: list[Exception] = field(default_factory=list)

    @property
    def rule(self) -> decision.Rule:
        """Return the cell's budget and how it is applied."""
        return decision.build_rule(self.cell)

    def unanswered(self, requests: Iterable[Request]) -> list[Request]:
        """Return the requests without an answer in the journal."""
        answered = self.journal.answers
        return [request for request in requests if (request.task, request.doc_id, request.prompt_hash) not in answered]


def open_cell(cell: Cell, backbone: Backbone, folder: Path, cache: FeatureCache, shard: Shard = WHOLE) -> ActiveCell:
    """Bind a cell's method and open its journal.

    Raises:
        UnsupportedError: the backbone lacks what the method reads.
        ConfigError: the method cannot reach the budget.
    """
    method = registry.load(cell.method, cell.params).bind(backbone)
    method.needs(backbone.provides)
    if backbone.num_visual is not None:
        budget = Budget(cell.budget.count(backbone.num_visual), cell.budget_kind)
        pruned_prompt.validate_cuts(method, backbone.num_visual, backbone.num_layers, budget)
    return ActiveCell(cell, method, shard.open_journal(folder, cell.id), BatchLimiter(cache.clear), shard)


def needs_of(backbone: Backbone, cells: Iterable[ActiveCell]) -> frozenset[str]:
    """Return the optional signals that any of the methods reads."""
    return frozenset().union(*(active.method.needs(backbone.provides) for active in cells))


def answer(
    backbone: Backbone,
    group: Sequence[ActiveCell],
    built: BuiltTask,
    requests: Sequence[Request],
    batch_size: int | str,
    encoder: Encoder,
    failed: FailedCells | None = None,
) -> Iterator[tuple[int, str]]:
    """Answer one task's samples for all its cells, batch by batch; yields how many are done, and the cell's label.

    A cell that fails keeps the answers of its earlier batches and is skipped from then on.

    Args:
        backbone: answers.
        group: the task's pending cells.
        built: scores single answers.
        requests: the task's requests that this process answers.
        batch_size: samples at once, or "auto".
        encoder: of the task's images.
        failed: collects the cells that fail; None raises their errors.
    """
    size = answers.batch_size(batch_size, backbone.device.type)
    for batch, following in pairwise([*answers.split_into_batches(built, requests, size), []]):
        encoder.start_batch(*(_to_encode(group, part, failed) for part in (batch, following)))
        for active in group:
            is_given_up = failed is not None and active.cell in failed
            todo = [] if is_given_up else active.unanswered(batch)
            yield len(batch) - len(todo), active.cell.label
            if todo:
                with failed.catch(active.cell) if failed else nullcontext():
                    samples = encoder.samples(todo, active.method, active.rule)
                    _answer_cell(backbone, active, built, samples, max(1, int(MAX_FAILED_RATIO * len(requests))))
                yield len(todo), active.cell.label


def _to_encode(group: Sequence[ActiveCell], requests: Sequence[Request], failed: FailedCells | None) -> list[Request]:
    """Return the requests that some cell still has to answer with the image at its original size."""
    readers = [
        active for active in group if not decision.has_resize(active.method) and not (failed and active.cell in failed)
    ]
    pending = {id(request) for active in readers for request in active.unanswered(requests)}
    return [request for request in requests if id(request) in pending]


def _answer_cell(
    backbone: Backbone, active: ActiveCell, built: BuiltTask, samples: Sequence[Sample], most_raised: int
) -> None:
    """Prune and answer a batch under one cell, and journal it.

    Raises:
        Exception: the first that the cell's samples raised, if more than `most_raised` of them did: then it is not a
            sample that is odd.
    """
    start = time.perf_counter()
    replies = answers.answer_samples(backbone, active.method, active.cell, samples, active.limiter)
    active.raised.extend(reply.error for reply in replies if reply.error)
    if len(active.raised) > most_raised:
        raise active.raised[0]
    ms = 1000 * (time.perf_counter() - start) / len(samples)
    active.journal.append(
        _journal_line(backbone, active, built, sample, reply, ms)
        for sample, reply in zip(samples, replies, strict=True)
    )


def _journal_line(
    backbone: Backbone, active: ActiveCell, built: BuiltTask, sample: Sample, reply: Reply, ms: float
) -> Answer:
    request = sample.request
    generated = reply.generated.text if reply.generated else None
    text = answers.truncate_at_stops(generated or "", request.until)
    return Answer(
        task=active.cell.task,
        doc_id=request.doc_id,
        image_hash=sample.image_group,
        prompt_hash=request.prompt_hash,
        image_group=sample.image_group,
        answer=text,
        scores=to_plain(built.scores(request, text)),
        visual_tokens=_tokens_read(backbone, reply),
        kept=_pack_kept(sample, reply),
        failure=reply.failure,
        too_long=sample.too_long,
        seed=active.cell.seed,
        shard=active.shard.number,
        cache_hits=sample.cache_hits,
        encoded=sample.encoded,
        ms=ms,
    )


def _tokens_read(backbone: Backbone, reply: Reply) -> tuple[int, ...]:
    """Return how many visual tokens each layer read, counted from what the cuts left; nothing without an answer."""
    if reply.prompt is None or reply.generated is None:
        return ()
    return reply.prompt.read_per_layer(backbone.num_layers, [len(rows) for rows in reply.generated.kept_rows])


def _pack_kept(sample: Sample, reply: Reply) -> tuple[str | None, ...]:
    """Pack per image which tokens the last layer read."""
    if reply.prompt is None or reply.generated is None:
        return ()
    last = forward.last_indices(reply.prompt, reply.generated)
    return tuple(
        pack_indices(indices.tolist(), len(features.embeds_ND))
        for indices, features in zip(last, sample.features, strict=True)
    )


def to_plain(value: Any) -> Any:
    """Turn numpy scalars inside nested containers into Python's own numbers."""
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
