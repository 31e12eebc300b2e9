"""Answer one task's samples for many cells, image by image: encode once, prune for each cell, generate, journal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import prefix, pruning, reducing, registry
from dpbench.encoding import Encoder, Sample
from dpbench.faults import Faults
from dpbench.feature_cache import FeatureCache
from dpbench.journal import Answer, Journal, pack_indices
from dpbench.manifest import Cell
from dpbench.method import Budget, Method, num_kept
from dpbench.patience import Patience
from dpbench.room import NO_ROOM, Room
from dpbench.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone
    from dpbench.lmms import BuiltTask, Request

AUTO_BATCH = {"cuda": 32, "cpu": 16}
"""Samples answered at once where nothing is said; a CPU's caches hold fewer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A pending cell with its method bound, its journal open, and how many of its samples fit at once.

    `only` are the numbers of its samples, where they are not all of the task's.
    """

    cell: Cell
    method: Method
    journal: Journal
    room: Room
    shard: Shard = WHOLE
    only: frozenset[int] | None = None

    @property
    def rule(self) -> reducing.Rule:
        """Return what the cell says about budgets."""
        return rule_of(self.cell)

    def unanswered(self, requests: Iterable[Request]) -> list[Request]:
        """Return the cell's requests that the journal holds no answer to."""
        known = self.journal.answers
        return [each for each in self.samples(requests) if (each.task, each.doc_id, each.prompt_hash) not in known]

    def samples(self, requests: Iterable[Request]) -> list[Request]:
        """Return the requests that are the cell's samples."""
        return [each for each in requests if self.only is None or each.doc_id in self.only]


def start(
    cell: Cell,
    backbone: Backbone,
    folder: Path,
    cache: FeatureCache,
    shard: Shard = WHOLE,
    only: frozenset[int] | None = None,
) -> Running:
    """Bind a cell's method and open its journal.

    Raises:
        UnsupportedError: the backbone lacks what the method reads.
        ConfigError: the budget is out of the method's reach.
    """
    method = registry.load(cell.method, cell.params).bind(backbone)
    method.needs(backbone.provides)
    if backbone.num_visual is not None:
        budget = Budget(num_kept(backbone.num_visual, cell.keep, cell.prune_rate), rule_of(cell).kind)
        pruning.checked_cuts(method, backbone.num_visual, backbone.num_layers, budget)
    return Running(cell, method, shard.journal(folder, cell.id), Room(cache.clear), shard, only)


def needs_of(backbone: Backbone, running: Iterable[Running]) -> frozenset[str]:
    """Return the optional signals that any of the methods reads."""
    return frozenset().union(*(each.method.needs(backbone.provides) for each in running))


def answer(
    backbone: Backbone,
    group: Sequence[Running],
    built: BuiltTask,
    requests: Sequence[Request],
    batch_size: int | str,
    encoder: Encoder,
    faults: Faults | None = None,
    patience: Patience | None = None,
) -> Iterator[tuple[int, str]]:
    """Answer one task's samples for all its cells, batch by batch; yields how many were done and what is next.

    A cell that fails keeps the answers of its earlier batches, and is not asked again.

    Args:
        backbone: answers.
        group: the task's pending cells.
        built: scores single answers.
        requests: what this process answers of the task.
        batch_size: samples at once, or "auto".
        encoder: of the task's images.
        faults: of the run; without it, a cell's error is raised.
        patience: how long a sample may take; without it, for ever.
    """
    patience = patience or Patience(None, backbone.model)
    size = AUTO_BATCH.get(backbone.device.type, 32) if batch_size == "auto" else int(batch_size)
    for batch, following in pairwise([*batches(built, requests, size), []]):
        encoder.start_batch(*(_pending(group, each, faults) for each in (batch, following)))
        for each in group:
            failed = faults is not None and each.cell in faults
            todo = [] if failed else each.unanswered(batch)
            yield len(each.samples(batch)) - len(todo), each.cell.label
            if todo:
                with faults.of(each.cell) if faults else nullcontext():
                    _answer_cell(backbone, each, built, _encoded(encoder, each, todo, patience), patience)
                yield len(todo), each.cell.label


def _pending(group: Sequence[Running], requests: Sequence[Request], faults: Faults | None) -> list[Request]:
    """Return the requests that a cell whose method reads images at their own size is still to answer."""
    asking = [each for each in group if not reducing.resizes(each.method) and not (faults and each.cell in faults)]
    wanted = {id(request) for each in asking for request in each.unanswered(requests)}
    return [request for request in requests if id(request) in wanted]


def batches(built: BuiltTask, requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Split requests into batches: questions about one image side by side, images by their longest question.

    A batch has one limit on the answer's length.
    """
    images: dict[tuple[int, str], list[Request]] = {}
    for request in requests:
        images.setdefault((request.max_new_tokens, built.image_group(request)), []).append(request)
    limits: dict[int, list[list[Request]]] = {}
    for (limit, _), together in images.items():
        limits.setdefault(limit, []).append(sorted(together, key=lambda request: len(request.text)))
    for groups in limits.values():
        groups.sort(key=lambda together: len(together[-1].text))
        ordered = [request for together in groups for request in together]
        for at in range(0, len(ordered), size):
            yield ordered[at : at + size]


def _encoded(encoder: Encoder, running: Running, todo: Sequence[Request], patience: Patience) -> list[Sample]:
    """Encode a batch's images for one cell; a sample whose images take too long has failed."""
    made = patience.map(todo, lambda part: encoder.samples(part, running.method, running.rule))
    return [each or Sample(todo[n], None, failure=patience.reason) for n, each in enumerate(made)]


def _answer_cell(
    backbone: Backbone, running: Running, built: BuiltTask, samples: Sequence[Sample], patience: Patience
) -> None:
    """Prune and answer a batch under one cell, and journal it."""
    start = time.perf_counter()
    said = _say(backbone, running, built, samples, patience)
    ms = 1000 * (time.perf_counter() - start) / len(samples)
    running.journal.append(
        _journalled(backbone, running, built, sample, each, ms) for sample, each in zip(samples, said, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What the model said to one sample and on what, or why it did not."""

    spliced: pruning.Spliced | None = None
    generated: pruning.Generated | None = None
    failure: str | None = None


def _say(
    backbone: Backbone, running: Running, built: BuiltTask, samples: Sequence[Sample], patience: Patience
) -> list[_Said]:
    """Answer the samples that can be, in batches that fit."""
    refused = {id(each): reason for each in samples if (reason := each.failure)}
    good = [each for each in samples if id(each) not in refused]

    def work(part: Sequence[Sample]) -> list[_Said]:
        spliced = [_splice(backbone, running, each) for each in part]
        failures = [too_long(backbone, each) for each in spliced]
        fits = [number for number, failure in enumerate(failures) if failure is None]
        prompts, images = [spliced[n] for n in fits], [built.image_group(part[n].request) for n in fits]
        limit = part[0].request.max_new_tokens
        told = iter(prefix.generate(backbone, running.method, prompts, images, max_new_tokens=limit) if fits else ())
        return [
            _Said(failure=failure) if failure else _Said(each, _checked(running.method, next(told)))
            for each, failure in zip(spliced, failures, strict=True)
        ]

    def in_time(part: Sequence[Sample]) -> list[_Said]:
        return [each or _Said(failure=patience.reason) for each in patience.map(part, work)]

    done = iter(running.room.map(good, in_time))
    return [
        _Said(failure=refused[id(each)]) if id(each) in refused else next(done) or _Said(failure=NO_ROOM)
        for each in samples
    ]


def _checked(method: Method, generated: pruning.Generated) -> pruning.Generated:
    """Refuse what was read after a cut that kept a visual row twice."""
    for survivors in generated.survivors:
        single = survivors[survivors >= 0]
        if len(single.unique()) < len(single):
            raise ValueError(f"{type(method).__name__}.select: a visual row is kept twice")
    return generated


def too_long(backbone: Backbone, spliced: pruning.Spliced) -> str | None:
    """Say that a prompt leaves no position for an answer within the model's context, or return None."""
    context = backbone.decoder.config.max_position_embeddings
    length = int(spliced.positions_PL.max()) + 1
    return None if length < context else f"too long: {length} positions, the model's context is {context}"


def _splice(backbone: Backbone, running: Running, sample: Sample) -> pruning.Spliced:
    assert sample.prompt is not None
    cell, doc_id = running.cell, sample.request.doc_id
    generators = [
        reducing.image_generator(cell.seed, f"{cell.task}/{doc_id}", image) for image in range(len(sample.features))
    ]
    return pruning.splice(backbone, running.method, sample.prompt, sample.features, generators, running.rule)


def _journalled(
    backbone: Backbone, running: Running, built: BuiltTask, sample: Sample, said: _Said, ms: float
) -> Answer:
    cell, request, group = running.cell, sample.request, built.image_group(sample.request)
    text = until(said.generated.text if said.generated else "", request.until)
    return Answer(
        task=cell.task,
        doc_id=request.doc_id,
        image_hash=group,
        prompt_hash=request.prompt_hash,
        image_group=group,
        answer=text,
        scores=plain(built.scores(request, text)),
        visual_tokens=said.spliced.per_layer(backbone.num_layers) if said.spliced else (),
        kept=_kept(sample, said.spliced, said.generated) if said.spliced and said.generated else (),
        failure=said.failure,
        seed=cell.seed,
        shard=running.shard.number,
        cache_hits=sample.cache_hits,
        encoded=sample.encoded,
        ms=ms,
    )


def _kept(sample: Sample, cut: pruning.Spliced, said: pruning.Generated) -> tuple[str | None, ...]:
    """Pack per image which tokens the last layer read."""
    alive = pruning.last_indices(cut, said)
    return tuple(
        pack_indices(indices.tolist(), len(feature.embeds_ND))
        for indices, feature in zip(alive, sample.features, strict=True)
    )


def rule_of(cell: Cell) -> reducing.Rule:
    """Return what a cell says about budgets."""
    return reducing.Rule(
        keep=cell.keep,
        prune_rate=cell.prune_rate,
        kind=cell.budget_kind,  # type: ignore[arg-type]
        anyres=cell.anyres,  # type: ignore[arg-type]
        newline=cell.newline,  # type: ignore[arg-type]
    )


def until(text: str, stops: Iterable[str]) -> str:
    """Cut an answer at the first of the task's stop strings."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def plain(value: Any) -> Any:
    """Turn numpy scalars inside nested containers into Python's own numbers."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value
