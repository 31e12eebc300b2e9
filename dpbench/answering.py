"""Answer one task's samples for many cells: encode a batch's images once, prune them for each cell, journal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dpbench import pruning, reducing, registry
from dpbench.journal import Answer, Journal, pack_indices
from dpbench.manifest import Cell
from dpbench.method import Budget, Method, num_kept

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpbench.backbones.base import Backbone, Features, Prompt
    from dpbench.lmms import BuiltTask, Request

AUTO_BATCH = 32
NO_IMAGE = "image could not be decoded"


@dataclass(slots=True)
class Running:
    """A pending cell with its method bound and its journal open."""

    cell: Cell
    method: Method
    journal: Journal


def start(cell: Cell, backbone: Backbone, folder: Path) -> Running:
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
    return Running(cell, method, Journal(folder / "samples" / f"{cell.id}.jsonl"))


def answer(
    backbone: Backbone, group: Sequence[Running], built: BuiltTask, batch_size: int | str
) -> Iterator[tuple[int, str]]:
    """Answer one task's samples for all its cells, batch by batch; yields how many were done and what is next."""
    size = AUTO_BATCH if batch_size == "auto" else int(batch_size)
    needs = frozenset().union(*(each.method.needs(backbone.provides) for each in group))
    requests = sorted(built.requests, key=lambda request: len(request.text))
    for at in range(0, len(requests), size):
        batch = requests[at : at + size]
        missing = {id(each): _unanswered(each, batch) for each in group}
        yield sum(len(batch) - len(todo) for todo in missing.values()), group[0].cell.task
        sharing = [missing[id(each)] for each in group if not reducing.resizes(each.method)]
        shared = _encode(backbone, built, [r for r in batch if any(r in todo for todo in sharing)], needs)
        for each in group:
            todo = missing[id(each)]
            if todo:
                samples = _encode(backbone, built, todo, needs, each) if reducing.resizes(each.method) else shared
                _answer_cell(backbone, each, built, [samples[request.doc_id] for request in todo])
                yield len(todo), each.cell.label


def _unanswered(running: Running, batch: Sequence[Request]) -> list[Request]:
    known = running.journal.answers
    return [r for r in batch if (r.task, r.doc_id, r.prompt_hash) not in known]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with its images encoded; `failure` says why it has none."""

    request: Request
    prompt: Prompt | None
    features: tuple[Features, ...]
    image_hash: str
    failure: str | None = None


def _encode(
    backbone: Backbone,
    built: BuiltTask,
    requests: Sequence[Request],
    needs: frozenset[str],
    resizing: Running | None = None,
) -> dict[int, Sample]:
    """Decode and encode a batch's images, each different one once, at the size a cell's method wants if it does."""
    method, rule = (resizing.method, rule_of(resizing.cell)) if resizing else (Method(), reducing.Rule())
    opened = {request.doc_id: _open(built, request) for request in requests}
    hashes = {doc_id: [_image_hash(image) for image in images or ()] for doc_id, images in opened.items()}
    prompts = {
        r.doc_id: reducing.prompt_of(backbone, method, opened[r.doc_id] or (), r.text, rule)
        for r in requests
        if opened[r.doc_id] is not None
    }
    pixels = {h: p for doc_id, prompt in prompts.items() for h, p in zip(hashes[doc_id], prompt.pixels, strict=True)}
    features = dict(zip(pixels, backbone.encode(list(pixels.values()), needs), strict=True)) if pixels else {}
    return {
        request.doc_id: Sample(
            request,
            prompts.get(request.doc_id),
            tuple(features[h] for h in hashes[request.doc_id]),
            sha256("".join(hashes[request.doc_id]).encode()).hexdigest()[:16],
            NO_IMAGE if opened[request.doc_id] is None else None,
        )
        for request in requests
    }


def _open(built: BuiltTask, request: Request) -> list[Image] | None:
    """Decode a sample's images, or return None if the bytes are no image."""
    try:
        return built.images(request)
    except OSError:
        return None


def _image_hash(image: Image) -> str:
    return sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


def _answer_cell(backbone: Backbone, running: Running, built: BuiltTask, samples: Sequence[Sample]) -> None:
    """Prune and answer a batch under one cell, and journal it."""
    start = time.perf_counter()
    cell, good = running.cell, [sample for sample in samples if sample.prompt is not None]
    spliced = [_splice(backbone, running, sample) for sample in good]
    told = _generate(backbone, running.method, spliced, good[0].request.max_new_tokens) if good else []
    elapsed = time.perf_counter() - start
    done = {s.request.doc_id: (said, cut) for s, said, cut in zip(good, told, spliced, strict=True)}
    answers = []
    for sample in samples:
        said, cut = done.get(sample.request.doc_id, (None, None))
        text = until(said.text if said else "", sample.request.until)
        answers.append(
            Answer(
                task=cell.task,
                doc_id=sample.request.doc_id,
                image_hash=sample.image_hash,
                prompt_hash=sample.request.prompt_hash,
                image_group=sample.image_hash,
                answer=text,
                scores=plain(built.scores(sample.request, text)),
                visual_tokens=cut.per_layer(backbone.num_layers) if cut else (),
                kept=_kept(sample, cut, said) if cut and said else (),
                failure=sample.failure,
                seed=cell.seed,
                shard=0,
                ms=1000 * elapsed / len(samples),
            )
        )
    running.journal.append(answers)


def _kept(sample: Sample, cut: pruning.Spliced, said: pruning.Generated) -> tuple[str | None, ...]:
    """Pack per image which tokens the last layer read."""
    alive = pruning.last_indices(cut, said)
    return tuple(
        pack_indices(indices.tolist(), len(feature.embeds_ND))
        for indices, feature in zip(alive, sample.features, strict=True)
    )


def _generate(
    backbone: Backbone, method: Method, spliced: Sequence[pruning.Spliced], max_new_tokens: int
) -> list[pruning.Generated]:
    """Answer a batch; where it does not fit the GPU's memory, answer its halves."""
    try:
        return pruning.generate(backbone, method, spliced, max_new_tokens=max_new_tokens)
    except torch.OutOfMemoryError:
        if len(spliced) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(spliced) // 2
    halves = (spliced[:middle], spliced[middle:])
    return [said for half in halves for said in _generate(backbone, method, half, max_new_tokens)]


def _splice(backbone: Backbone, running: Running, sample: Sample) -> pruning.Spliced:
    assert sample.prompt is not None
    cell, doc_id = running.cell, sample.request.doc_id
    generators = [
        reducing.image_generator(cell.seed, f"{cell.task}/{doc_id}", image) for image in range(len(sample.features))
    ]
    return pruning.splice(backbone, running.method, sample.prompt, sample.features, generators, rule_of(cell))


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
