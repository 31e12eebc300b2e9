"""What methods keep of one image: the decisions that `dpbench visualize` draws.

Shape letters: N visual tokens of the image, K kept ones, H and W pixels of the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dpbench import backbones, registry
from dpbench.backbones.base import Backbone, Features, Pixels, Prompt
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.errors import ConfigError
from dpbench.machine.device import pick_device
from dpbench.method import Method, Reduction
from dpbench.tasks.data.image_file import UNREADABLE, open_image
from dpbench.visualize.picture import Kept, Sheet, check_out, parse_rows, write
from dpbench.visualize.request import Request, check

SAMPLE = "picture"
"""The sample name from which a method's randomness is seeded."""


def read_image(path: Path) -> Image.Image:
    """Return an image file as RGB, rotated as EXIF says, like the images of benchmarks.

    Raises:
        ConfigError: the file does not exist, or is a folder, empty, truncated or not an image.
    """
    if not path.exists():
        raise ConfigError(f"IMAGE: there is no file {path}; give an image file")
    if path.is_dir():
        raise ConfigError(f"IMAGE: {path} is a folder; give an image file")
    try:
        if path.stat().st_size == 0:
            raise ConfigError(f"IMAGE: {path} is empty (0 bytes); give a complete image file")
        return open_image(path)
    except UnidentifiedImageError:
        raise ConfigError(
            f"IMAGE: {path} is not an image that Pillow can read; give a PNG, JPEG or WebP file"
        ) from None
    except UNREADABLE as error:
        raise ConfigError(f"IMAGE: {path} cannot be read ({error}); give a complete image file") from None


def decide(
    backbone: Backbone,
    image: Image.Image,
    names: Sequence[str],
    rule: decision.Rule,
    question: str,
    params: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Kept]:
    """Return what each method keeps: one entry for a decision before the LLM, one for each cut inside it.

    Args:
        backbone: loaded.
        image: RGB.
        names: of registered methods.
        rule: the budget.
        question: prompt for methods that read it.
        params: hyper-parameters, by method.

    Raises:
        ConfigError: a method is unknown or cannot reach the budget.
        UnsupportedError: the backbone lacks what a method reads.
    """
    methods = {name: registry.load(name, (params or {}).get(name)).bind(backbone) for name in names}
    return [entry for name in names for entry in _decide_one(backbone, image, name, methods[name], rule, question)]


@torch.inference_mode()
def _decide_one(
    backbone: Backbone, image: Image.Image, name: str, bound: Method, rule: decision.Rule, question: str
) -> Iterator[Kept]:
    method, selected = record_selections(bound)
    prompt = decision.build_unpruned_prompt(backbone, method, [image], question, rule)
    (features,) = backbone.encode(prompt.pixels, method.needs(backbone.provides))
    generators = [decision.image_generator(0, SAMPLE, 0)]
    spliced = pruned_prompt.splice(backbone, method, prompt, [features], generators, rule)
    sheet = build_sheet(backbone, image, prompt, features)
    (before,) = spliced.kept
    if not spliced.cuts:
        all_tokens = torch.arange(len(features.embeds_ND))
        yield _build_decision(f"{name}\n", sheet, features, before, all_tokens, count_mixed(backbone, features, before))
        return
    (rows,) = spliced.tokens
    with forward.drop_inside_llm(backbone, method, [spliced]):
        batch = forward.collate([spliced])
        backbone.logits(batch.embeds_BLD, None, batch.positions_PBL, last=True)
    for cut, reduction in zip(spliced.cuts, selected, strict=True):
        indices = reduction.indices_K.cpu()
        merged = int((indices < 0).sum())
        yield _build_decision(f"{name}\nbefore layer {cut.layer}: ", sheet, features, reduction, rows, merged)
        rows = torch.where(indices < 0, -1, rows[indices.clamp(min=0)])


def record_selections(method: Method) -> tuple[Method, list[Reduction]]:
    """Return a copy of a bound method, and a list to which the copy appends its selections inside the LLM."""
    copied, selected = copy.copy(method), list[Reduction]()

    def select(view: Any) -> Reduction:
        selected.append(method.select(view))
        return selected[-1]

    # A subclass or wrapper would not do: the engine and the method's own functions read its fields and class
    # attributes. Nobody else has the copy, so setting an attribute leaves the frozen original unchanged.
    object.__setattr__(copied, "select", select)
    return copied, selected


def count_mixed(backbone: Backbone, features: Features, reduction: Reduction) -> int:
    """Return how many rows are not exactly one token's embedding: means, CLS, padding."""
    rows, indices = (
        pruned_prompt.compute_rows(backbone, features, reduction),
        reduction.indices_K.to(features.embeds_ND.device),
    )
    plain = (rows - features.embeds_ND[indices.clamp(min=0)]).abs().amax(-1) <= 1e-4 * rows.abs().amax()
    return int((~plain | (indices < 0)).sum())


def _build_decision(
    title: str, sheet: Sheet, features: Features, reduction: Reduction, remaining: Tensor, mixed: int
) -> Kept:
    """Return one decision, with indices that refer to all tokens of the image.

    Args:
        title: method and place.
        sheet: the position of each token.
        features: of the image.
        reduction: indices into the remaining tokens, and their scores.
        remaining: token of the image behind each of them, int64; -1 for a merged row.
        mixed: number of rows that are not a single token.
    """
    indices = reduction.indices_K.cpu()
    tokens = remaining[indices[indices >= 0]].unique()
    scores_N = np.full(len(features.embeds_ND), np.nan)
    if reduction.scores_N is not None and len(reduction.scores_N) == len(remaining):
        scores_N[remaining.numpy()] = reduction.scores_N.double().cpu().numpy()
    unit = torch.nn.functional.normalize(features.embeds_ND.float(), dim=-1).cpu().numpy()
    heading = f"{title}{len(indices)} of {len(features.embeds_ND)}{f', {mixed} mixed' if mixed else ''}"
    return Kept(heading, sheet, tokens[tokens >= 0].numpy(), scores_N, unit)


def build_sheet(backbone: Backbone, image: Image.Image, prompt: Prompt, features: Features) -> Sheet:
    """Return the picture that the tower sees, with the position of each token's patch.

    AnyRes: the base view, and next to it the tiles as the single map that the LLM reads; padding is not drawn.
    """
    (pixels,) = prompt.pixels
    places = [part.cpu().numpy() for part in (features.view_N, features.row_N, features.col_N)]
    views = _load_views(backbone, image, pixels, int(places[1].max()) + 1, int(places[2].max()) + 1)
    cell = views[0].shape[0] // (int(places[1].max()) + 1)
    row_N, col_N, gap = *_map_places(features, places), cell
    tiles = places[0] > 0
    left = gap + (int(places[2].max()) + 1) * cell
    x_N = np.where(row_N < 0, -1, col_N * cell + np.where(tiles, left, 0))
    y_N = np.where(row_N < 0, -1, row_N * cell)
    canvas = np.full((int(y_N.max()) + cell, int(x_N.max()) + cell, 3), 255, dtype=np.uint8)
    for token in np.flatnonzero(x_N >= 0):
        view, row, col = (int(part[token]) * (cell if at else 1) for at, part in enumerate(places))
        patch = views[view][row : row + cell, col : col + cell]
        canvas[y_N[token] : y_N[token] + cell, x_N[token] : x_N[token] + cell] = patch
    return Sheet(canvas, np.stack([x_N, y_N], axis=1), cell)


def _load_views(
    backbone: Backbone, image: Image.Image, pixels: Pixels, rows: int, cols: int
) -> list[NDArray[np.uint8]]:
    """Return every view, (H, W, 3); native-resolution towers have patches only, so there the image is resized."""
    values, processor = pixels.values.float().cpu(), backbone.processor.image_processor
    if values.ndim == 2:
        step = max(image.height // rows, 1)
        return [np.asarray(image.resize((cols * step, rows * step)))]
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (processor.image_mean, processor.image_std))
    visible = ((values * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return [part.permute(1, 2, 0).numpy() for part in (visible if visible.ndim == 4 else visible[None])]


def _map_places(features: Features, places: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return row and column of each token in its map (the base view, or all tiles together); -1 if it is not read."""
    view_N, row_N, col_N = (part.copy() for part in places)
    slot_N = features.slot_N.numpy()
    tiles = np.flatnonzero((view_N > 0) & (slot_N >= 0))
    row_N[slot_N < 0] = -1
    if len(tiles):
        slots = np.sort(slot_N[tiles])
        gaps = np.flatnonzero(np.diff(slots) > 1)
        stride = (int(gaps[0]) + 1 if len(gaps) else len(slots)) + 1  # a row of the map, and its newline
        row_N[tiles], col_N[tiles] = np.divmod(slot_N[tiles] - slots[0], stride)
    return row_N, col_N


def draw(request: Request) -> str:
    """Draw what methods keep of an image, and return a line with the path of the picture.

    Raises:
        ConfigError: a part of the request is wrong.
        MissingError: the weights are not there.
        UnsupportedError: the backbone lacks what a method reads.
    """
    check(request)
    image, rows = read_image(request.image), parse_rows(request.show)
    check_out(request.out)
    name, weights, revision = request.backbone, request.weights, request.revision
    backbones.locate(name, weights, revision)
    device = pick_device(request.device)
    loaded = backbones.load(
        name,
        weights=weights,
        revision=revision,
        device=device,
        dtype=request.dtype,
        image_aspect=request.image_aspect,
    )
    rule = decision.Rule(request.budget)
    write(decide(loaded, image, request.methods, rule, request.question, request.params), rows, request.out)
    return f"{request.out}: {', '.join(request.methods)} on {request.image.name}, {request.backbone}"
