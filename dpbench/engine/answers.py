"""Answer a batch of encoded samples under one cell: build the pruned prompts, generate, cut at the stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpbench.backbones.base import Backbone
from dpbench.backbones.finite import explain_not_finite
from dpbench.engine import decision, pruned_prompt, shared_prefix
from dpbench.engine.encoding import Sample
from dpbench.engine.forward import Generated
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.machine.out_of_memory import BatchLimiter
from dpbench.manifest.cell import Cell
from dpbench.method import Method

if TYPE_CHECKING:
    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request

AUTO_BATCH = {"cuda": 32, "cpu": 16}
"""Samples answered at once under `batch_size: auto`; a CPU's caches hold fewer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's answer to one sample and the prompt it read, or why there is none and what was raised."""

    prompt: PrunedPrompt | None = None
    generated: Generated | None = None
    failure: str | None = None
    error: Exception | None = None


def batch_size(requested: int | str, device_type: str) -> int:
    """Return how many samples are answered at once."""
    return AUTO_BATCH.get(device_type, 32) if requested == "auto" else int(requested)


def split_into_batches(built: BuiltTask, requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Split requests into batches: questions about one image side by side, images by their longest question.

    All requests of a batch share one limit on the answer's length.
    """
    by_image: dict[tuple[int, str], list[Request]] = {}
    for request in requests:
        by_image.setdefault((request.max_new_tokens, built.image_group(request)), []).append(request)
    by_limit: dict[int, list[list[Request]]] = {}
    for (limit, _), questions in by_image.items():
        by_limit.setdefault(limit, []).append(sorted(questions, key=lambda request: len(request.text)))
    for images in by_limit.values():
        images.sort(key=lambda questions: len(questions[-1].text))
        ordered = [request for questions in images for request in questions]
        for at in range(0, len(ordered), size):
            yield ordered[at : at + size]


def answer_samples(
    backbone: Backbone, method: Method, cell: Cell, samples: Sequence[Sample], limiter: BatchLimiter
) -> list[Reply]:
    """Answer samples of one cell, in parts that fit into memory; a sample that cannot be answered says why.

    Args:
        backbone: answers.
        method: the cell's, bound to the backbone.
        cell: gives the budget, the task and the seed.
        samples: with one limit on the answer's length.
        limiter: of the cell; halves the parts when memory runs out.
    """
    encoded = [sample for sample in samples if sample.failure is None]
    replies = iter(
        limiter.map(
            encoded,
            lambda part: _answer_together(backbone, method, cell, part),
            lambda reason, error: Reply(failure=reason, error=error),
        )
    )
    return [Reply(failure=sample.failure) if sample.failure else next(replies) for sample in samples]


def _answer_together(backbone: Backbone, method: Method, cell: Cell, samples: Sequence[Sample]) -> list[Reply]:
    prompts = [_splice(backbone, method, cell, sample) for sample in samples]
    groups, limit = [sample.image_group for sample in samples], samples[0].request.max_new_tokens
    answers = shared_prefix.generate(backbone, method, prompts, groups, max_new_tokens=limit)
    return [
        Reply(failure=explain_not_finite("the logits are", backbone.dtype))
        if generated.text is None
        else Reply(prompt, _without_repeats(method, generated))
        for prompt, generated in zip(prompts, answers, strict=True)
    ]


def _splice(backbone: Backbone, method: Method, cell: Cell, sample: Sample) -> PrunedPrompt:
    assert sample.prompt is not None
    generators = [
        decision.image_generator(cell.seed, f"{cell.task}/{sample.request.doc_id}", image)
        for image in range(len(sample.features))
    ]
    rule = decision.build_rule(cell)
    return pruned_prompt.splice(backbone, method, sample.prompt, sample.features, generators, rule)


def _without_repeats(method: Method, generated: Generated) -> Generated:
    """Return what was generated, after a check that no cut kept a visual row twice."""
    for survivors in generated.kept_rows:
        single = survivors[survivors >= 0]
        if len(single.unique()) < len(single):
            raise ValueError(f"{type(method).__name__}.select: a visual row is kept twice")
    return generated


def truncate_at_stops(text: str, stops: Iterable[str]) -> str:
    """Cut an answer at the first of the task's stop strings."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
