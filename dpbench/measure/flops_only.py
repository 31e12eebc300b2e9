"""The FLOPs of every method on a backbone, without weights and without a GPU.

Tower, projector, decoder and LM head follow from the configuration (`flops_formula`). What a method adds is counted
while it runs on noise of the real shapes, on the CPU: its decision before the LLM, including tokens it projects again,
and its ranking at every cut inside the LLM. If a method's work depends on the image's content, its count is for noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from PIL import Image

from dpbench import backbones, registry
from dpbench.backbones.architectures import ARCHITECTURES
from dpbench.backbones.base import Backbone, Features, Prompt
from dpbench.engine import decision, pruned_prompt
from dpbench.engine.decision import Rule, build_rule
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.manifest.cell import Cell
from dpbench.manifest.schema import BackboneEntry, Manifest
from dpbench.measure import flops_formula, random_features
from dpbench.measure.flops import Count, count_flops
from dpbench.measure.settings import cells_to_measure
from dpbench.measure.synthetic_prompts import QUESTION, usual_size
from dpbench.method import Cut, LayerView, Method, Reduction


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsRow:
    """FLOPs of one (backbone, method, budget) up to the first token, batch size 1; 2 per multiply-add.

    Attributes:
        backbone: its name.
        method: its name.
        params: its hyper-parameters.
        budget: as tables show it.
        image_hw: height and width of the image in pixels.
        text_tokens: positions that are neither visual tokens nor newlines.
        num_newlines: AnyRes newlines left.
        visual_tokens_per_layer: visual tokens each decoder layer reads.
        stages_flops: tower, projector, signals (attention rows the method requests from the tower), reduce (the
            method's own decision, before and inside the LLM), decoder, lm_head; empty if the method refuses.
        refusal: why the method does not support this backbone or budget, or "".
    """

    backbone: str
    method: str
    params: Mapping[str, Any]
    budget: str
    image_hw: tuple[int, int]
    text_tokens: int
    num_newlines: int = 0
    visual_tokens_per_layer: tuple[int, ...] = ()
    stages_flops: Mapping[str, int]
    refusal: str = ""

    @property
    def label(self) -> str:
        """Return the method's name with its hyper-parameters and budget."""
        return label(self.method, self.params, self.budget)

    @property
    def num_visual(self) -> float:
        """Return the number of visual tokens that the LLM reads, mean over its layers."""
        return mean(self.visual_tokens_per_layer)

    @property
    def total(self) -> int:
        """Return the sum over the stages."""
        return sum(self.stages_flops.values())


def label(method: str, params: Mapping[str, Any], budget: str) -> str:
    """Return a method's name with its hyper-parameters and budget, as tables show it."""
    options = ", ".join(f"{name}={value}" for name, value in params.items())
    return f"{method}{f' ({options})' if options else ''}{'' if budget == 'all' else f' @ {budget}'}"


def count_manifest(manifest: Manifest, *, text_tokens: int, image_hw: tuple[int, int] | None = None) -> list[FlopsRow]:
    """Count each (method, budget) of a manifest once; no weights are read.

    Args:
        manifest: its tasks, limits and seeds do not matter here.
        text_tokens: positions of the prompt that are neither visual tokens nor newlines.
        image_hw: height and width of the image in pixels; by default the family's `usual_size`.

    Raises:
        ConfigError: a setting has no effect here, or a size is below 1.
        DpbenchError: all methods refuse; this is the first one's error.
    """
    backbone, size = load_shapes(manifest), image_hw or usual_size(manifest.backbone.name)
    check_sizes(text_tokens, size)
    with torch.inference_mode():
        results = [_count_cell(backbone, cell, size, text_tokens) for cell in cells_to_measure(manifest)]
    refusals = [refusal for _, refusal in results if refusal]
    if len(refusals) == len(results):
        raise refusals[0]
    return [row for row, _ in results]


def check_sizes(text_tokens: int, image_hw: tuple[int, int]) -> None:
    """Check that the prompt has text and the image has pixels.

    Raises:
        ConfigError: a size is below 1; the message names the setting.
    """
    if text_tokens < 1:
        raise ConfigError(f"--text-tokens: must be at least 1, got {text_tokens}")
    if min(image_hw) < 1:
        raise ConfigError(f"--image-size: must be at least 1 pixel a side, got {image_hw[0]} x {image_hw[1]}")


def load_shapes(manifest: Manifest) -> Backbone:
    """Load a manifest's backbone without weights: modules on the meta device, the real processor.

    Embeddings and projector, which methods and the splice run, are on the CPU with uninitialized values.

    Raises:
        ConfigError: the manifest names other weights, or how to quantize or place them.
    """
    entry, protocol = manifest.backbone, manifest.resolved_protocol()
    _refuse_settings(entry)
    on_meta = entry.name in ARCHITECTURES
    backbone = backbones.load(
        entry.name,
        weights=backbones.RANDOM if on_meta else None,
        device="meta" if on_meta else "cpu",
        prompt=protocol.prompt,
        image_aspect=protocol.image_aspect,
        grids=protocol.grids,
        pixels=(protocol.min_pixels, protocol.max_pixels),
    )
    if on_meta:
        core = backbone.core
        for module in (
            backbone.decoder.embed_tokens,
            getattr(core, "multi_modal_projector", None) or core.visual.merger,
        ):
            module.to_empty(device="cpu")
    return backbone


def is_on_meta(backbone: Backbone) -> bool:
    """Return True if the decoder's layers have shapes but no values."""
    return bool(next(backbone.decoder.layers.parameters()).is_meta)


def _refuse_settings(entry: BackboneEntry) -> None:
    values = {"weights": entry.weights, "revision": entry.revision}
    values |= {"quantize": entry.quantize, "device-map": entry.device_map}
    for setting, value in values.items():
        if value not in (None, backbones.RANDOM):
            raise ConfigError(
                f"--flops-only counts {entry.name} at its published size; --{setting} has no effect, remove it"
            )


def _count_cell(
    backbone: Backbone, cell: Cell, image_hw: tuple[int, int], text_tokens: int
) -> tuple[FlopsRow, DpbenchError | None]:
    """Count one cell; if the method refuses, return a row without counts and its error."""
    identity: dict[str, Any] = {
        "backbone": cell.backbone,
        "method": cell.method,
        "params": cell.params,
        "budget": cell.budget.label,
        "image_hw": image_hw,
        "text_tokens": text_tokens,
    }
    try:
        method = bind(registry.load(cell.method, cell.params), backbone)
        flops = count_method(backbone, method, build_rule(cell), image_hw, text_tokens)
    except DpbenchError as error:
        return FlopsRow(**identity, stages_flops={}, refusal=str(error)), error
    row = FlopsRow(
        **identity,
        num_newlines=flops.num_newlines,
        visual_tokens_per_layer=flops.visual_tokens_per_layer,
        stages_flops=flops.stages_flops,
    )
    return row, None


def bind(method: Method, backbone: Backbone) -> Method:
    """Bind a method with its weights for this backbone, or with fresh ones if there are none."""
    try:
        return method.bind(backbone)
    except MissingError:
        return method.untrained().bind(backbone)


@dataclass(frozen=True, slots=True)
class MethodFlops:
    """The result of `count_method`; fields as in `FlopsRow`."""

    num_newlines: int
    visual_tokens_per_layer: tuple[int, ...]
    stages_flops: Mapping[str, int]


def count_method(
    backbone: Backbone, method: Method, rule: Rule, image_hw: tuple[int, int], text_tokens: int, *, seed: int = 0
) -> MethodFlops:
    """Count a bound method on one image.

    Args:
        backbone: from `load_shapes`, or any with embeddings and projector on the CPU.
        method: bound to it.
        rule: the budget.
        image_hw: height and width in pixels.
        text_tokens: positions that are neither visual tokens nor newlines.
        seed: of the noise that the method reads.
    """
    image = Image.new("RGB", (image_hw[1], image_hw[0]))
    prompt = decision.build_unpruned_prompt(backbone, method, [image], QUESTION, rule)
    config, needs = backbone.model.config, method.needs(backbone.provides)
    num_views, grid = random_features.layout(backbone, prompt.pixels[0])
    features = [random_features.features(backbone, prompt.pixels[0], needs, seed=seed)]
    splice_flops, spliced = count_splice(backbone, method, prompt, features, rule, count_flops)
    start, stop = prompt.spans[0]
    newlines = len(spliced.visual_L) - spliced.num_visual - (len(prompt.ids_L) - (stop - start))
    num_text, before = newlines + text_tokens, min(start, text_tokens - 1)
    layout = random_features.PromptLayout(before, spliced.num_visual, num_text - before, seed)
    ranking = count_ranking(backbone, method, spliced.cuts, layout)
    per_layer = spliced.read_per_layer(backbone.num_layers, ranking.survivors)
    stages_flops = {
        "tower": flops_formula.tower(config, grid, num_views),
        "projector": flops_formula.projector(config, num_views * grid[0] * grid[1]),
        "signals": flops_formula.signals(config, needs, grid, num_views),
        "reduce": splice_flops + ranking.flops,
        "decoder": flops_formula.decoder(config, [num + num_text for num in per_layer]),
        "lm_head": flops_formula.lm_head(config),
    }
    return MethodFlops(newlines, per_layer, stages_flops)


def count_splice(
    backbone: Backbone, method: Method, prompt: Prompt, features: Sequence[Features], rule: Rule, count: Count
) -> tuple[int, PrunedPrompt]:
    """Return the FLOPs of a method's decision before the LLM, and the prompt it leads to."""
    generators = [decision.image_generator(0, "flops", 0)]
    results: list[PrunedPrompt] = []
    flops = count(lambda: results.append(pruned_prompt.splice(backbone, method, prompt, features, generators, rule)))
    return flops, results[0]


@dataclass(frozen=True, slots=True)
class Ranking:
    """FLOPs of what a method computes at its cuts, and how many visual tokens each of them leaves."""

    flops: int
    survivors: tuple[int, ...]


def count_ranking(
    backbone: Backbone,
    method: Method,
    cuts: Sequence[Cut],
    layout: random_features.PromptLayout,
    count: Count = count_flops,
) -> Ranking:
    """Let a method decide its cuts on noise, and count.

    Args:
        backbone: gives the decoder's widths.
        method: bound to it.
        cuts: where the method cuts.
        layout: of the prompt that the first layer reads.
        count: the counter.
    """
    total, num_visual, survivors = 0, layout.num_visual, list[int]()
    for stage, cut in enumerate(cuts):
        view = random_features.layer_view(backbone, cut, stage, layout, num_visual)
        decisions = list[Reduction]()
        total += count(partial(_select, method, view, decisions))
        num_visual = len(decisions[0].indices_K)
        survivors.append(num_visual)
    return Ranking(total, tuple(survivors))


def _select(method: Method, view: LayerView, decisions: list[Reduction]) -> None:
    decisions.append(method.select(view))
