"""The FLOPs of every method on a backbone, without weights and without a GPU.

Tower, projector, decoder and LM head follow from the configuration (`closed_form`). What a method adds is counted as it
runs, on noise of the real shapes on the CPU: its decision before the LLM, with what it projects anew, and its
ranking at every cut inside the LLM. A method whose work depends on the image's content is thus counted for noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate

from dpbench import backbones, registry
from dpbench.backbones.architectures import ARCHITECTURES
from dpbench.backbones.base import Backbone
from dpbench.engine import decision, pruned_prompt
from dpbench.engine.decision import Rule, build_rule
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.manifest.cell import Cell
from dpbench.manifest.schema import BackboneEntry, Manifest
from dpbench.measure import flops_formula, random_features
from dpbench.measure.flops import Count, count_flops
from dpbench.measure.settings import Settings, once_each
from dpbench.measure.synthetic_prompts import QUESTION, usual_size
from dpbench.method import Cut, Method

TITLES = {
    "tower": "Tower",
    "projector": "Projector",
    "signals": "Signals",
    "reduce": "Reduce",
    "decoder": "Decoder",
    "lm_head": "LM head",
}
UNITS = {"GFLOP": 10**9, "MFLOP": 10**6}
FEW = 10**11
"""Below this many FLOPs in all rows, tables count in MFLOP."""
CONVENTION = (
    "FLOPs: 2 per multiply-add of matrix products, convolutions and attention (all L * L pairs, causal or not). "
    "Counted: all layers of the tower, projector, what the method adds (signals it has the tower give out; reduce: its "
    "decision before the LLM and its ranking inside, on noise), all decoder layers, LM head at the last position. Not "
    "counted: element-wise work, norms, softmax, QR and SVD."
)
NATIVE_SIDE = 1008
"""Pixels of a square image where the tower takes any size: 1,296 visual tokens of 28 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsRow:
    """FLOPs of one (backbone, method, budget) up to the first token, batch size 1; 2 per multiply-add.

    Attributes:
        backbone: its name.
        method: its name.
        params: its hyper-parameters.
        budget: as tables show it.
        image_hw: pixels of the image, height and width.
        text_tokens: positions that are neither visual token nor newline.
        num_newlines: AnyRes newlines left.
        visual_tokens_per_layer: visual tokens each decoder layer reads.
        stages_flops: tower, projector, signals (attention rows the method has the tower give out), reduce (the method's
            own decision, before and inside the LLM), decoder, lm_head; empty where the method refuses.
        refusal: why this backbone or budget is out of the method's reach, or "".
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
        """Return the method with its hyper-parameters and budget."""
        return label(self.method, self.params, self.budget)

    @property
    def num_visual(self) -> float:
        """Return the visual tokens the LLM reads, mean over its layers."""
        return mean(self.visual_tokens_per_layer)

    @property
    def total(self) -> int:
        """Return the sum over the stages."""
        return sum(self.stages_flops.values())


def label(method: str, params: Mapping[str, Any], budget: str) -> str:
    """Return a method with its hyper-parameters and budget, as tables show it."""
    options = ", ".join(f"{name}={value}" for name, value in params.items())
    return f"{method}{f' ({options})' if options else ''}{'' if budget == 'all' else f' @ {budget}'}"


def flops_table(manifest: Manifest, settings: Settings) -> str:
    """Return the table of FLOPs as text, with what they include below it.

    Raises:
        DpbenchError: see `flops_only`.
    """
    rows = flops_only(manifest, text_tokens=settings.text_tokens, image_hw=settings.image_hw)
    body = tabulate(table(rows), headers="keys", tablefmt="github", stralign="right", disable_numparse=True)
    return "\n".join([body, "", *(f"- {note}" for note in notes(rows))])


def flops_only(manifest: Manifest, *, text_tokens: int, image_hw: tuple[int, int] | None = None) -> list[FlopsRow]:
    """Count each (method, budget) of a manifest once; no weights are read.

    Args:
        manifest: its tasks, limits and seeds do not matter here.
        text_tokens: positions of the prompt that are neither visual token nor newline.
        image_hw: pixels of the image, height and width; by default the family's `usual_size`.

    Raises:
        ConfigError: a setting that changes nothing here, or no text.
        DpbenchError: all methods refuse; what the first one says.
    """
    backbone, size = shapes(manifest), image_hw or usual_size(manifest.backbone.name)
    check_sizes(text_tokens, size)
    with torch.inference_mode():
        counted = [_row(backbone, cell, size, text_tokens) for cell in once_each(manifest)]
    refusals = [refusal for _, refusal in counted if refusal]
    if len(refusals) == len(counted):
        raise refusals[0]
    return [row for row, _ in counted]


def check_sizes(text_tokens: int, image_hw: tuple[int, int]) -> None:
    """Check that there is text and that the image has pixels.

    Raises:
        ConfigError: names the setting.
    """
    if text_tokens < 1:
        raise ConfigError(f"--text-tokens: must be at least 1, got {text_tokens}")
    if min(image_hw) < 1:
        raise ConfigError(f"--image-size: must be at least 1 pixel a side, got {image_hw[0]} x {image_hw[1]}")


def shapes(manifest: Manifest) -> Backbone:
    """Return a manifest's backbone without weights: modules on the meta device, the real processor.

    What a method or the splice runs (embeddings, projector) is on the CPU, its values unset.

    Raises:
        ConfigError: other weights are named, or how they are packed or placed.
    """
    entry, protocol = manifest.backbone, manifest.protocol
    _refuse_settings(entry)
    known = entry.name in ARCHITECTURES
    backbone = backbones.load(
        entry.name,
        weights=backbones.RANDOM if known else None,
        device="meta" if known else "cpu",
        prompt=protocol.prompt,
        pixels=(protocol.min_pixels, protocol.max_pixels),
    )
    if known:
        core = backbone.core
        for module in (
            backbone.decoder.embed_tokens,
            getattr(core, "multi_modal_projector", None) or core.visual.merger,
        ):
            module.to_empty(device="cpu")
    return backbone


def is_on_meta(backbone: Backbone) -> bool:
    """Return True if the decoder's layers have shapes only."""
    return bool(next(backbone.decoder.layers.parameters()).is_meta)


def _refuse_settings(entry: BackboneEntry) -> None:
    named = {"weights": entry.weights, "revision": entry.revision}
    named |= {"quantize": entry.quantize, "device-map": entry.device_map}
    for setting, value in named.items():
        if value not in (None, backbones.RANDOM):
            raise ConfigError(f"--flops-only counts {entry.name} at its published size, --{setting} changes nothing")


def _row(
    backbone: Backbone, cell: Cell, image_hw: tuple[int, int], text_tokens: int
) -> tuple[FlopsRow, DpbenchError | None]:
    """Count one cell, or say why the method refuses."""
    described: dict[str, Any] = {
        "backbone": cell.backbone,
        "method": cell.method,
        "params": cell.params,
        "budget": cell.budget.label,
        "image_hw": image_hw,
        "text_tokens": text_tokens,
    }
    try:
        method = bind(registry.load(cell.method, cell.params), backbone)
        counted = count(backbone, method, build_rule(cell), image_hw, text_tokens)
    except DpbenchError as error:
        return FlopsRow(**described, stages_flops={}, refusal=str(error)), error
    row = FlopsRow(
        **described,
        num_newlines=counted.num_newlines,
        visual_tokens_per_layer=counted.per_layer,
        stages_flops=counted.stages_flops,
    )
    return row, None


def bind(method: Method, backbone: Backbone) -> Method:
    """Bind a method with the weights it has for this backbone, or where there are none with fresh ones."""
    try:
        return method.bind(backbone)
    except MissingError:
        return method.untrained().bind(backbone)


@dataclass(frozen=True, slots=True)
class Counted:
    """What `count` found, as in `FlopsRow`."""

    num_newlines: int
    per_layer: tuple[int, ...]
    stages_flops: Mapping[str, int]


def count(
    backbone: Backbone, method: Method, rule: Rule, image_hw: tuple[int, int], text_tokens: int, *, seed: int = 0
) -> Counted:
    """Count a bound method on one image.

    Args:
        backbone: of `shapes`, or any whose embeddings and projector are on the CPU.
        method: bound to it.
        rule: the budget.
        image_hw: pixels, height and width.
        text_tokens: positions that are neither visual token nor newline.
        seed: of the noise that the method decides on.
    """
    picture = Image.new("RGB", (image_hw[1], image_hw[0]))
    prompt = decision.build_prompt(backbone, method, [picture], QUESTION, rule)
    config, needs = backbone.model.config, method.needs(backbone.provides)
    num_views, grid = random_features.layout(backbone, prompt.pixels[0])
    features = [random_features.features(backbone, prompt.pixels[0], needs, seed=seed)]
    generators = [decision.image_generator(0, "flops", 0)]
    made: list[PrunedPrompt] = []
    decided = count_flops(
        lambda: made.append(pruned_prompt.splice(backbone, method, prompt, features, generators, rule))
    )
    (spliced,), (start, stop) = made, prompt.spans[0]
    newlines = len(spliced.visual_L) - spliced.num_visual - (len(prompt.ids_L) - (stop - start))
    per_layer, num_text = spliced.per_layer(backbone.num_layers), newlines + text_tokens
    before = min(start, text_tokens - 1)
    around = random_features.Around(before, spliced.num_visual, num_text - before, seed)
    found = {
        "tower": flops_formula.tower(config, grid, num_views),
        "projector": flops_formula.projector(config, num_views * grid[0] * grid[1]),
        "signals": flops_formula.signals(config, needs, grid, num_views),
        "reduce": decided + ranking(backbone, method, spliced.cuts, around),
        "decoder": flops_formula.decoder(config, [num + num_text for num in per_layer]),
        "lm_head": flops_formula.lm_head(config),
    }
    return Counted(newlines, per_layer, found)


def ranking(
    backbone: Backbone,
    method: Method,
    cuts: Sequence[Cut],
    around: random_features.Around,
    count: Count = count_flops,
) -> int:
    """Return the FLOPs of what a method computes at its cuts.

    Args:
        backbone: for the decoder's widths.
        method: bound to it.
        cuts: where it cuts.
        around: the prompt the first layer reads.
        count: the counter.
    """
    total, alive = 0, around.num_visual
    for stage, cut in enumerate(cuts):
        view = random_features.layer_view(backbone, cut, stage, around, alive)
        total += count(partial(method.select, view))
        alive = min(alive, cut.keep)
    return total


def table(rows: Sequence[FlopsRow]) -> list[dict[str, str]]:
    """Return what `tabulate(..., headers="keys")` prints: FLOPs per stage, their sum, and its share of `none`'s."""
    whole = {row.backbone: row.total for row in rows if row.method == "none"}
    unit = "GFLOP" if max(row.total for row in rows) >= FEW else "MFLOP"
    return [_printed(row, whole.get(row.backbone), unit) for row in rows]


def _printed(row: FlopsRow, whole: int | None, unit: str) -> dict[str, str]:
    def show(flops: int, decimals: int) -> str:
        return "-" if row.refusal else f"{flops / UNITS[unit]:,.{decimals}f}"

    return {
        "Method": row.label,
        "Tokens": "-" if row.refusal else f"{row.num_visual:,.0f}",
        **{title: show(row.stages_flops.get(stage, 0), 3) for stage, title in TITLES.items()},
        f"Total {unit}": show(row.total, 1),
        "of none": f"{row.total / whole:.1%}" if whole and not row.refusal else "-",
    }


def notes(rows: Sequence[FlopsRow]) -> list[str]:
    """Return the sentences below the table: what was counted, and which methods refused."""
    first = rows[0]
    height, width = first.image_hw
    return [
        f"{first.backbone}, one image of {height} x {width} pixels, {first.text_tokens} text tokens, batch size 1, "
        "up to the first token.",
        CONVENTION,
        *(f"{row.label}: {row.refusal}" for row in rows if row.refusal),
    ]
