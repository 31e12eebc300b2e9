"""Tokens as pixels: the patches that a classifier reads, or what a ridge regression decodes from a projector's tokens.

Shape letters: R rows (one view each), N tokens of an image, D their width, S the side of a patch in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import fold, unfold

from dpbench.diffprune.example import BrokenError, Example
from dpbench.diffprune.objective import Batch
from dpbench.probe.patch_site import Patches, PatchSite
from dpbench.probe.projector_site import ProjectorSite
from dpbench.visualize.decisions import build_sheet
from dpbench.visualize.picture import Sheet

NUM_TRAINING = 64
"""Images that the regression is fitted on: at LLaVA-1.5's 576 tokens of width 4096, nine tokens a weight."""
AT_ONCE = 8
"""Images that are encoded together."""
SIDE = 14
"""Pixels of a patch's side at most; larger patches are reduced."""
RIDGE = 1e-3
"""Penalty on the regression's weights, as a share of the mean variance of a token's values."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tokens of several images, and how they look.

    Attributes:
        sheets: an image each, with the place of every token's patch; all patches have the same side S.
        tokens_RND: of the images.
        split: from (R, N, ...) to a tensor per image.
        pixels_of: from tokens (N, D) to the pixels of their patches, (N, S, S, 3) in 0 to 1.
        r2: share of the held-out pixels' variance that is decoded; None where tokens are pixels.
    """

    sheets: Sequence[Sheet]
    tokens_RND: Tensor
    split: Callable[[Tensor], Sequence[Tensor]]
    pixels_of: Callable[[Tensor], Numbers]
    r2: float | None


def paint(sheet: Sheet, pixels_NSS3: Numbers) -> Numbers:
    """Return a picture, (H, W, 3), of patches at their places; what no token covers is white."""
    picture, cell = np.ones(sheet.picture.shape), sheet.cell
    for (x, y), patch in zip(sheet.corner_N2, pixels_NSS3, strict=True):
        if x >= 0:
            picture[y : y + cell, x : x + cell] = patch
    return picture


def patch_canvas(site: PatchSite, batch: Patches) -> Canvas:
    """Return the canvas of a classifier, whose tokens here are the pixels of patches as it reads them, normalised."""
    side = round((batch.pixels[0, 0].numel() / site.num_tokens) ** 0.5)
    patches_RDN = unfold(batch.pixels, side, stride=side)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (site.processor.image_mean, site.processor.image_std))

    def pixels_of(tokens_ND: Tensor) -> Numbers:
        values = tokens_ND.cpu().unflatten(-1, (3, side, side)) * std + mean
        return np.asarray(values.clamp(0, 1).permute(0, 2, 3, 1), dtype=np.float64)

    size = tuple(batch.pixels.shape[-2:])
    corners = np.array([(x, y) for y in range(0, size[0], side) for x in range(0, size[1], side)])
    visible = [fold(rows_DN, size, side, stride=side) * std.to(rows_DN) + mean.to(rows_DN) for rows_DN in patches_RDN]
    pictures = [(image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in visible]
    sheets = [Sheet(picture, corners, side) for picture in pictures]
    return Canvas(sheets, patches_RDN.transpose(1, 2), list, pixels_of, None)


def token_canvas(site: ProjectorSite, batch: Batch, num: int) -> Canvas:
    """Return the canvas of a backbone; its tokens are decoded by what is fitted on training images.

    Args:
        site: with the images.
        batch: the first held-out one.
        num: images of it.
    """
    sheets = _sheets(site, _read(site, site.setup.split.validation, num), batch)
    sheets = [_reduce(sheet, min(SIDE, sheets[0].cell)) for sheet in sheets]
    decode = fit_ridge(_training_pairs(site, sheets[0].cell))
    side = sheets[0].cell

    def pixels_of(tokens_ND: Tensor) -> Numbers:
        return np.clip(decode(_numbers(tokens_ND)), 0, 1).reshape(-1, side, side, 3)

    pairs = [_pairs(tokens_ND, sheet) for tokens_ND, sheet in zip(batch.embeds, sheets, strict=True)]
    tokens, pixels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    r2 = 1 - ((decode(tokens) - pixels) ** 2).sum() / ((pixels - pixels.mean(0)) ** 2).sum()
    return Canvas(sheets, site.tokens(batch), batch.views.images, pixels_of, float(r2))


def fit_ridge(batches: Iterator[tuple[Numbers, Numbers]]) -> Callable[[Numbers], Numbers]:
    """Return the ridge regression with intercept from (n, D) to (n, P), fitted on batches of both."""
    num, sums = 0, [np.zeros(1)] * 4
    for x, y in batches:
        num += len(x)
        sums = [old + new for old, new in zip(sums, (x.sum(0), y.sum(0), x.T @ x, x.T @ y), strict=True)]
    x_mean, y_mean = sums[0] / num, sums[1] / num
    covariance = sums[2] / num - np.outer(x_mean, x_mean)
    penalty = RIDGE * covariance.diagonal().mean() * np.eye(len(covariance))
    weights = np.linalg.solve(covariance + penalty, sums[3] / num - np.outer(x_mean, y_mean))
    return lambda tokens: np.asarray((tokens - x_mean) @ weights + y_mean)


def _training_pairs(site: ProjectorSite, side: int) -> Iterator[tuple[Numbers, Numbers]]:
    examples = _read(site, site.setup.split.training, NUM_TRAINING)
    for start in range(0, len(examples), AT_ONCE):
        batch = site.objective.encode(examples[start : start + AT_ONCE])
        for tokens_ND, sheet in zip(batch.embeds, _sheets(site, examples[start:], batch), strict=True):
            yield _pairs(tokens_ND, _reduce(sheet, side))


def _read(site: ProjectorSite, indices: Iterable[int], num: int) -> list[Example]:
    """Return the first so many images that can be read."""
    examples: list[Example] = []
    for index in indices:
        if len(examples) == num:
            break
        try:
            examples.append(site.setup.source[int(index)])
        except BrokenError:
            continue
    return examples


def _sheets(site: ProjectorSite, examples: Sequence[Example], batch: Batch) -> list[Sheet]:
    parts = zip(examples, batch.prompts, batch.features, strict=False)
    return [build_sheet(site.objective.backbone, example.image, prompt, image) for example, prompt, image in parts]


def _reduce(sheet: Sheet, side: int) -> Sheet:
    """Return the same image with patches of this side."""
    height, width = (size * side // sheet.cell for size in sheet.picture.shape[:2])
    picture = np.asarray(Image.fromarray(sheet.picture).resize((width, height), Image.Resampling.BOX))
    corners = np.where(sheet.corner_N2 < 0, -1, sheet.corner_N2 * side // sheet.cell)
    return replace(sheet, picture=picture, corner_N2=corners, cell=side)


def _pairs(tokens_ND: Tensor, sheet: Sheet) -> tuple[Numbers, Numbers]:
    """Return the tokens that have a patch, and its pixels in 0 to 1, flattened."""
    cell, seen = sheet.cell, sheet.corner_N2[:, 0] >= 0
    patches = [sheet.picture[y : y + cell, x : x + cell].ravel() for x, y in sheet.corner_N2[seen]]
    return _numbers(tokens_ND)[seen], np.array(patches) / 255


def _numbers(tensor: Tensor) -> Numbers:
    return np.asarray(tensor.detach().double().cpu())
