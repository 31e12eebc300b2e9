"""Run and time one method from pixels to the first token, stage by stage, and through decoding.

B prompts at once. Nothing here waits for the device, but what a method or the engine waits for counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
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
from dpbench.measure.synthetic_prompts import ROTATION, Inputs
from dpbench.measure.timing import Clock, Recorder, Stages
from dpbench.method import Method, Reduction

DECODED = 32


class FirstToken:
    """One method at one budget, ready to be run again and again; each stage leaves its result for the next."""

    def __init__(self, backbone: Backbone, method: Method, cell: Cell, asked: Inputs, *, graphed: bool = False) -> None:
        self.backbone, self.method, self.rule, self.asked = backbone, method, build_rule(cell), asked
        self.needs = method.needs(backbone.provides)
        self.images = [asked.images(backbone.name, seed) for seed in range(ROTATION)]
        self.batches = [self._prompts(turn) for turn in range(ROTATION)]
        self.captured_encode = Graphed(self._encode) if graphed else None
        self.captured_prefill = Graphed(self._logits) if graphed else None
        self.read_by_graphs: list[DroppingState] = []
        """What recorded prefills read besides their arguments; freed, its memory would become another tensor's."""
        self.features: list[list[Features]] = []
        self.kept: list[tuple[Reduction, ...]] = []
        self.spliced: list[pruned_prompt.PrunedPrompt] = []

    def _prompts(self, turn: int) -> list[Prompt]:
        return synthetic_prompts.prompts(
            self.backbone, self.method, self.rule, self.asked, self.images[turn % ROTATION]
        )

    def stages(self, turn: int) -> Stages:
        """Return encode, reduce, splice and prefill of one of the batches, in order."""
        batch = self.batches[turn % ROTATION]
        return {
            "encode": lambda: self._encoded(batch),
            "reduce": lambda: self._decide(batch),
            "splice": lambda: self._assemble(batch),
            "prefill": self._prefill,
        }

    def once(self) -> None:
        """Go through the stages once, before anything is timed: records CUDA graphs, and finds out what is refused.

        Raises:
            UnsupportedError: the backbone, or a CUDA graph, cannot serve the method.
        """
        for call in self.stages(0).values():
            call()

    def run(self, turn: int, recorder: Recorder) -> None:
        """Time one pass from pixels to the first token's logits; ranges inside a CUDA graph cannot be separated."""
        inside = nullcontext() if self.captured_encode else profiler_ranges.listening(recorder)
        with inside, recorder.range("ttft"):
            for name, call in self.stages(turn).items():
                with recorder.range(name):
                    call()

    def answer(self, turn: int, recorder: Recorder) -> None:
        """Go once from images to `DECODED` tokens behind the first."""
        seen: list[Any] = []
        with recorder.range("end_to_end"):
            with recorder.range("preprocess"):
                batch = self._prompts(turn)
            for name, call in self.stages(turn).items():
                if name != "prefill":
                    call()
            self._generate(_Marking(recorder.clock, seen))
        recorder.ranges.append(("decode", seen[0], seen[-1]))
        del batch

    def _encoded(self, batch: Sequence[Prompt]) -> None:
        pixels = [each for prompt in batch for each in prompt.pixels]
        self.pixels = pixels
        encode = self.captured_encode or self._encode
        features = encode(*(each.values for each in pixels))
        per = self.asked.num_images
        self.features = [features[at : at + per] for at in range(0, len(features), per)]

    def _encode(self, *values: Tensor) -> list[Features]:
        pixels = [replace(each, values=value) for each, value in zip(self.pixels, values, strict=True)]
        return self.backbone.encode(pixels, self.needs)

    def _decide(self, batch: Sequence[Prompt]) -> None:
        self.kept = [
            pruned_prompt.decide(self.backbone, self.method, prompt, features, self._generators(features), self.rule)
            for prompt, features in zip(batch, self.features, strict=True)
        ]

    @staticmethod
    def _generators(features: Sequence[Features]) -> list[torch.Generator]:
        return [decision.image_generator(0, "profile", n) for n in range(len(features))]

    def _assemble(self, batch: Sequence[Prompt]) -> None:
        self.spliced = [
            pruned_prompt.assemble(self.backbone, self.method, prompt, features, kept, self.rule)
            for prompt, features, kept in zip(batch, self.features, self.kept, strict=True)
        ]

    def _prefill(self) -> Tensor:
        if self.captured_prefill is None:
            return forward.prefill(self.backbone, self.method, self.spliced)
        batch = forward.collate(self.spliced)
        prompt = batch.embeds_BLD, batch.positions_PBL
        if not self.captured_prefill.knows(*prompt):
            with forward.prune(self.backbone, self.method, self.spliced) as state:
                self.read_by_graphs.append(state)
                return self.captured_prefill(*prompt)  # type: ignore[no-any-return]
        return self.captured_prefill(*prompt)  # type: ignore[no-any-return]

    def _logits(self, embeds_BLD: Tensor, positions_PBL: Tensor) -> Tensor:
        return self.backbone.logits(embeds_BLD, None, positions_PBL, last=True)[:, -1]

    def cache(self) -> Any:
        """Return the cache that a prefill leaves."""
        batch = forward.collate(self.spliced)
        with forward.prune(self.backbone, self.method, self.spliced):
            output = self.backbone.forward(batch.embeds_BLD, batch.mask_BL, batch.positions_PBL, last=True)
        return output.past_key_values

    def _generate(self, marking: _Marking) -> None:
        batch = forward.collate(self.spliced)
        with forward.prune(self.backbone, self.method, self.spliced):
            self.backbone.generate(
                batch.embeds_BLD,
                batch.mask_BL,
                batch.positions_PBL,
                max_new_tokens=DECODED + 1,
                min_new_tokens=DECODED + 1,
                stopping_criteria=[marking],
            )


class _Marking:
    """A stopping criterion that never stops, and marks every token."""

    def __init__(self, clock: Clock, seen: list[Any]) -> None:
        self.clock, self.seen = clock, seen

    def __call__(self, input_ids: Tensor, scores: Any, **_settings: Any) -> Tensor:
        self.seen.append(self.clock.mark())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def net(seen: dict[str, float]) -> dict[str, float]:
    """Move what a method makes the encoder and the decoder do besides out of their stages and into reduce.

    `signals` stays to be seen by itself; `rank`, of methods that cut inside the LLM, does not.
    """
    signals, rank = seen.get("signals", 0), seen.get("rank", 0)
    moved = {"encode": -signals, "reduce": signals + rank, "prefill": -rank}
    hidden = {"rank"} if signals else {"rank", "signals"}
    return {name: value + moved.get(name, 0) for name, value in seen.items() if name not in hidden}
