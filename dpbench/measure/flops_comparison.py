"""The same forward counted three ways: by our closed form, by torch's counter and by fvcore's handles.

At full size, tower and decoder run on the meta device. A method's decisions read values, which the meta device does not
have, so they run on noise on the CPU. If the tower reads values too, a whole forward of the family's miniature is
counted instead. Counting decisions on other noise shows which methods' work depends on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from dpbench import backbones, registry
from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone, Prompt
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import Rule, build_rule
from dpbench.errors import DpbenchError, UnsupportedError
from dpbench.manifest.cell import Cell
from dpbench.manifest.schema import Manifest
from dpbench.measure import flops_only, random_features
from dpbench.measure.flops import Count, count_flops, count_flops_by_fvcore
from dpbench.measure.settings import cells_to_measure
from dpbench.measure.synthetic_prompts import QUESTION, fit_text, usual_size
from dpbench.method import LayerView, Method, Reduction

COUNTERS: Mapping[str, Count] = {"torch": count_flops, "fvcore": count_flops_by_fvcore}
FORMULA = "closed form"
FULL_META, FULL_CPU, MINIATURE = "full, meta", "full, CPU", "miniature"
SIZES_HW = {"llava": (56, 56), "llava_next": (112, 112), "qwen2_5_vl": (140, 196)}
"""Image sizes for the miniatures: tiles without padding, and windows that both edges cut off."""
MINIATURE_RATE = 0.5
"""Share of the visual tokens that methods remove on a miniature; every method can reach it."""
Counts = tuple[dict[str, int], dict[str, str]]
"""FLOPs by each way of counting, and the reasons why other ways could not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One (method, budget) counted three ways, up to the first token.

    Attributes:
        label: the method with its hyper-parameters and budget.
        size: what was counted: `FULL_META`, `FULL_CPU` or `MINIATURE`.
        flops: keyed by `FORMULA` and the names of `COUNTERS`, 2 per multiply-add; ways that could not count are absent.
        reasons: why a way could not count, by its name.
        decompositions: operators of QR, SVD and the like that ran, which no counter counts.
        content_flops: difference of the method's FLOPs between two noise images.
        full_size_refusal: why the full size cannot run on the meta device, or "".
    """

    label: str
    size: str
    flops: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)
    decompositions: tuple[str, ...] = ()
    content_flops: int = 0
    full_size_refusal: str = ""


@dataclass(frozen=True, slots=True)
class CountedMethod:
    """A method bound to a backbone, with a budget and the sizes of the prompt."""

    backbone: Backbone
    method: Method
    rule: Rule
    image_hw: tuple[int, int]
    text_tokens: int

    def prompt(self) -> Prompt:
        """Return a prompt about one noise image."""
        noise = np.random.default_rng(0).integers(0, 256, (*self.image_hw, 3), dtype=np.uint8)
        prompt = decision.build_unpruned_prompt(
            self.backbone, self.method, [Image.fromarray(noise)], QUESTION, self.rule
        )
        return fit_text(prompt, self.text_tokens)

    def count_by_formula(self, seed: int = 0) -> int:
        """Return the FLOPs that `--flops-only` prints; the method decides on noise of this seed."""
        flops = flops_only.count_method(
            self.backbone, self.method, self.rule, self.image_hw, self.text_tokens, seed=seed
        )
        return sum(flops.stages_flops.values())

    def run(self) -> None:
        """Run one forward, from pixels to the first token's logits."""
        prompt = self.prompt()
        features = self.backbone.encode(prompt.pixels, self.method.needs(self.backbone.provides))
        generators = [decision.image_generator(0, "flops", 0)]
        spliced = pruned_prompt.splice(self.backbone, self.method, prompt, features, generators, self.rule)
        forward.prefill(self.backbone, self.method, [spliced])

    def count_in_parts(self, count: Count, meta: Backbone) -> int:
        """Return the FLOPs of the same forward, with `meta`'s tower and decoder on the meta device.

        Raises:
            RuntimeError: the tower or the decoder reads a value, which the meta device does not have.
        """
        prompt, needs = self.prompt(), self.method.needs(self.backbone.provides)
        total = count(lambda: meta.encode(prompt.pixels, needs))
        features = [random_features.features(self.backbone, prompt.pixels[0], needs)]
        splice_flops, spliced = flops_only.count_splice(self.backbone, self.method, prompt, features, self.rule, count)
        before = prompt.spans[0][0]
        after = len(spliced.visual_L) - spliced.num_visual - before
        layout = random_features.PromptLayout(before, spliced.num_visual, after)
        ranking = flops_only.count_ranking(self.backbone, self.method, spliced.cuts, layout, count)
        total += splice_flops + ranking.flops
        on_meta = replace(spliced, embeds_LD=spliced.embeds_LD.to("meta"), positions_PL=spliced.positions_PL.to("meta"))
        stand_in = _KeepFirst(positions=self.method.positions, survivors=ranking.survivors)
        return total + count(lambda: forward.prefill(meta, stand_in, [on_meta]))


@dataclass(frozen=True, kw_only=True)
class _KeepFirst(Method):
    """Replaces a method at its cuts, where only the number of remaining tokens matters.

    survivors: how many tokens each cut leaves.
    """

    survivors: tuple[int, ...] = ()

    def select(self, view: LayerView) -> Reduction:
        return Reduction(torch.arange(self.survivors[view.stage], device=view.visual_index_N.device))


def compare(manifest: Manifest, *, text_tokens: int, image_hw: tuple[int, int] | None = None) -> list[ComparisonRow]:
    """Count each (method, budget) of a manifest three ways; no weights are read.

    Args:
        manifest: its tasks, limits and seeds do not matter here.
        text_tokens: positions of the prompt that are neither visual tokens nor newlines.
        image_hw: height and width of the image in pixels; by default the family's `usual_size`.

    Raises:
        ConfigError: a setting has no effect here, or there are too few text tokens.
        UnsupportedError: no closed form is known for this backbone.
    """
    shapes = flops_only.load_shapes(manifest)
    family = shapes.model.config.model_type
    if family not in SIZES_HW:
        raise UnsupportedError(f"--verify: there is no closed form for {family!r}; known: {', '.join(SIZES_HW)}")
    size = image_hw or usual_size(manifest.backbone.name)
    flops_only.check_sizes(text_tokens, size)
    on_meta = flops_only.is_on_meta(shapes)
    meta = backbones.load(shapes.name, weights=backbones.RANDOM, device="meta") if on_meta else shapes
    with torch.inference_mode():
        return [_compare_cell(cell, shapes, meta, size, text_tokens) for cell in cells_to_measure(manifest)]


def _compare_cell(
    cell: Cell, shapes: Backbone, meta: Backbone, image_hw: tuple[int, int], text_tokens: int
) -> ComparisonRow:
    method = registry.load(cell.method, cell.params)
    label = flops_only.label(cell.method, cell.params, cell.budget.label)
    rule = build_rule(cell)
    try:
        full = CountedMethod(shapes, flops_only.bind(method, shapes), rule, image_hw, text_tokens)
        with _Operators() as operators:
            formula, other = full.count_by_formula(), full.count_by_formula(seed=1)
    except DpbenchError as error:
        return ComparisonRow(label=label, size="-", flops={}, reasons=dict.fromkeys((FORMULA, *COUNTERS), str(error)))
    blind: dict[str, Any] = {
        "decompositions": tuple(sorted(operators.decompositions)),
        "content_flops": abs(other - formula),
    }
    try:
        size, (flops, reasons) = _count_full_size(full, meta, formula)
    except RuntimeError as error:  # torch raises this when a value is read on the meta device
        size, (flops, reasons) = MINIATURE, count_miniature(full, method)
        blind["full_size_refusal"] = str(error).splitlines()[0]
    return ComparisonRow(label=label, size=size, flops=flops, reasons=reasons, **blind)


def _count_full_size(full: CountedMethod, meta: Backbone, formula: int) -> tuple[str, Counts]:
    if meta is full.backbone:
        return FULL_CPU, _count_all(lambda count: count(full.run), formula)
    return FULL_META, _count_all(lambda count: full.count_in_parts(count, meta), formula)


def _count_all(count: Callable[[Count], int], formula: int) -> Counts:
    """Return the FLOPs by each way, and the reasons why a counter could not count."""
    flops, reasons = {FORMULA: formula}, {}
    for name, counter in COUNTERS.items():
        try:
            flops[name] = count(counter)
        except DpbenchError as error:
            reasons[name] = str(error)
    return flops, reasons


@cache
def miniature(family: str) -> Backbone:
    """Build a family's miniature once and return it."""
    return miniatures.backbone(family)


def _shrink(full: CountedMethod, method: Method) -> CountedMethod:
    """Return the same method on the family's miniature, whose few layers only allow a moderate budget."""
    backbone = miniature(full.backbone.model.config.model_type)
    budget = full.rule.budget if full.rule.budget.keeps_all else BudgetRequest(prune_rate=MINIATURE_RATE)
    return CountedMethod(
        backbone,
        flops_only.bind(method, backbone),
        replace(full.rule, budget=budget),
        SIZES_HW[backbone.name],
        full.text_tokens,
    )


def count_miniature(full: CountedMethod, method: Method) -> Counts:
    """Count a whole forward of the family's miniature, three ways."""
    try:
        small = _shrink(full, method)
        return _count_all(lambda count: count(small.run), small.count_by_formula())
    except (DpbenchError, RuntimeError) as error:
        return {}, dict.fromkeys((FORMULA, *COUNTERS), str(error))


class _Operators(TorchDispatchMode):
    """Collects the names of the decompositions that run inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.decompositions: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").lstrip("_")
        if name.startswith("linalg_") and "norm" not in name:
            self.decompositions.add(name)
        return func(*args, **(kwargs or {}))
