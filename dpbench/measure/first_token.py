"""Run and time one method from pixels to the first token, stage by stage, and through decoding.

Nothing here waits for the device; where a method or the engine waits, that time counts. Shape letters: B prompts of the
batch, L prompt positions, P position axes, D the LLM's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import build_rule
from dpbench.engine.dropping import DroppingState
from dpbench.machine import profiler_ranges
from dpbench.machine.cuda_graph import Graphed
from dpbench.manifest.cell import Cell
from dpbench.measure import synthetic_prompts
from dpbench.measure.synthetic_prompts import ROTATION, PromptShape
from dpbench.measure.timing import Clock, Recorder, Stages
from dpbench.method import Method, Reduction

NUM_DECODED = 32
"""Tokens decoded after the first one where decoding is timed."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a prefill leaves.

    Attributes:
        cache: keys and values of every layer.
        survivors: by prompt and cut, how many visual rows the cut left.
    """

    cache: Any
    survivors: tuple[tuple[int, ...], ...]


class FirstToken:
    """One method at one budget, ready to be run repeatedly; each stage stores its result for the next."""

    def __init__(
        self, backbone: Backbone, method: Method, cell: Cell, shape: PromptShape, *, graphed: bool = False
    ) -> None:
        self.backbone, self.method, self.rule, self.shape = backbone, method, build_rule(cell), shape
        self.needs = method.needs(backbone.provides)
        self.images = [shape.noise_images(backbone.name, seed) for seed in range(ROTATION)]
        self.batches = [self._build_prompts(turn) for turn in range(ROTATION)]
        self.encode_graph = Graphed(self._encode_pixels) if graphed else None
        self.prefill_graph = Graphed(self._logits) if graphed else None
        # Recorded prefills read these states on every replay, so their memory must not be freed.
        self.graph_states: list[DroppingState] = []
        self.features: list[list[Features]] = []
        self.reductions: list[tuple[Reduction, ...]] = []
        self.pruned_prompts: list[pruned_prompt.PrunedPrompt] = []

    def _build_prompts(self, turn: int) -> list[Prompt]:
        images = self.images[turn % ROTATION]
        return synthetic_prompts.build_prompts(self.backbone, self.method, self.rule, self.shape, images)

    def stages(self, turn: int) -> Stages:
        """Return the calls that encode, reduce, splice and prefill one of the batches, in order."""
        batch = self.batches[turn % ROTATION]
        return {
            "encode": lambda: self._encode(batch),
            "reduce": lambda: self._decide(batch),
            "splice": lambda: self._assemble(batch),
            "prefill": self._prefill,
        }

    def run_untimed(self) -> None:
        """Run the stages once before anything is timed. This records CUDA graphs and finds unsupported methods.

        Raises:
            UnsupportedError: the backbone, or a CUDA graph, cannot serve the method.
        """
        for call in self.stages(0).values():
            call()

    def run(self, turn: int, recorder: Recorder) -> None:
        """Time one pass from pixels to the first token's logits; ranges inside a CUDA graph cannot be separated."""
        inner_ranges = nullcontext() if self.encode_graph else profiler_ranges.listening(recorder)
        with inner_ranges, recorder.range("ttft"):
            for name, call in self.stages(turn).items():
                with recorder.range(name):
                    call()

    def answer(self, turn: int, recorder: Recorder) -> None:
        """Time one pass from images to `NUM_DECODED` tokens after the first."""
        token_marks: list[Any] = []
        with recorder.range("end_to_end"):
            with recorder.range("preprocess"):
                batch = self._build_prompts(turn)
            for name, call in self.stages(turn).items():
                if name != "prefill":
                    call()
            self._generate(_TokenMarker(recorder.clock, token_marks))
        recorder.ranges.append(("decode", token_marks[0], token_marks[-1]))
        del batch

    def _encode(self, batch: Sequence[Prompt]) -> None:
        self.pixels = [pixels for prompt in batch for pixels in prompt.pixels]
        encode = self.encode_graph or self._encode_pixels
        features = encode(*(pixels.values for pixels in self.pixels))
        per_prompt = self.shape.num_images
        self.features = [features[start : start + per_prompt] for start in range(0, len(features), per_prompt)]

    def _encode_pixels(self, *values: Tensor) -> list[Features]:
        pixels = [replace(image, values=value) for image, value in zip(self.pixels, values, strict=True)]
        return self.backbone.encode(pixels, self.needs)

    def _decide(self, batch: Sequence[Prompt]) -> None:
        self.reductions = [
            pruned_prompt.decide(self.backbone, self.method, prompt, features, self._generators(features), self.rule)
            for prompt, features in zip(batch, self.features, strict=True)
        ]

    @staticmethod
    def _generators(features: Sequence[Features]) -> list[torch.Generator]:
        return [decision.image_generator(0, "profile", index) for index in range(len(features))]

    def _assemble(self, batch: Sequence[Prompt]) -> None:
        self.pruned_prompts = [
            pruned_prompt.assemble(self.backbone, self.method, prompt, features, reductions, self.rule)
            for prompt, features, reductions in zip(batch, self.features, self.reductions, strict=True)
        ]

    def _prefill(self) -> Tensor:
        if self.prefill_graph is None:
            return forward.prefill(self.backbone, self.method, self.pruned_prompts)
        batch = forward.collate(self.pruned_prompts)
        prompt = batch.embeds_BLD, batch.positions_PBL
        if not self.prefill_graph.knows(*prompt):
            with forward.drop_inside_llm(self.backbone, self.method, self.pruned_prompts) as state:
                self.graph_states.append(state)
                return self.prefill_graph(*prompt)  # type: ignore[no-any-return]
        return self.prefill_graph(*prompt)  # type: ignore[no-any-return]

    def _logits(self, embeds_BLD: Tensor, positions_PBL: Tensor) -> Tensor:
        return self.backbone.logits(embeds_BLD, None, positions_PBL, last=True)[:, -1]

    def prefilled(self) -> Prefilled:
        """Run a prefill that is not timed, and return what it leaves."""
        batch = forward.collate(self.pruned_prompts)
        with forward.drop_inside_llm(self.backbone, self.method, self.pruned_prompts) as state:
            output = self.backbone.forward(batch.embeds_BLD, batch.mask_BL, batch.positions_PBL, last=True)
        survivors = tuple(tuple(map(len, kept)) for kept in state.kept_rows())
        return Prefilled(output.past_key_values, survivors)

    def _generate(self, marker: _TokenMarker) -> None:
        batch = forward.collate(self.pruned_prompts)
        with forward.drop_inside_llm(self.backbone, self.method, self.pruned_prompts):
            self.backbone.generate(
                batch.embeds_BLD,
                batch.mask_BL,
                batch.positions_PBL,
                max_new_tokens=NUM_DECODED + 1,
                min_new_tokens=NUM_DECODED + 1,
                stopping_criteria=[marker],
            )


class _TokenMarker:
    """A stopping criterion that never stops; it marks the time of every token."""

    def __init__(self, clock: Clock, marks: list[Any]) -> None:
        self.clock, self.marks = clock, marks

    def __call__(self, input_ids: Tensor, scores: Any, **_settings: Any) -> Tensor:
        self.marks.append(self.clock.mark())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def charge_reduce(gross: dict[str, float]) -> dict[str, float]:
    """Move the method's extra work in the encoder (`signals`) and decoder (`rank`) from these stages to reduce.

    `signals` also stays in the result as a value of its own, unless it is zero; `rank` does not.
    """
    signals, rank = gross.get("signals", 0), gross.get("rank", 0)
    moved = {"encode": -signals, "reduce": signals + rank, "prefill": -rank}
    hidden = {"rank"} if signals else {"rank", "signals"}
    return {name: value + moved.get(name, 0) for name, value in gross.items() if name not in hidden}
