"""What removed and noised patches look like under the same random scores (Figure 4a of the DiffPrune paper).

In front of a classifier the tokens are the normalised pixels of patches, and noise is laid on them. Behind a projector
they are decoded to pixels.

Shape letters: R rows (one view each), N tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpbench.diffprune.objective import Budget, generator_of
from dpbench.diffprune.soft_topk import hard_topk_mask
from dpbench.diffprune.throttler import Gate, throttle, vp_noise
from dpbench.probe.canvas import Canvas, paint, patch_canvas, token_canvas
from dpbench.probe.noise import random_scores
from dpbench.probe.patch_site import PatchSite
from dpbench.probe.projector_site import ProjectorSite
from dpbench.probe.settings import Form, NoiseSettings, Way
from dpbench.probe.site import Site, draw_gate
from dpbench.report.figures import probe_patches
from dpbench.report.figures.files import save, style
from dpbench.report.figures.probe_patches import Picture

NAME = "noised-patches"
"""Name of the figure, next to the records."""
NUM_PICTURES, NUM_KEEPS = 2, 3
"""Images and budgets that a page has room for beside each other."""


def write(site: Site, settings: NoiseSettings, folder: Path) -> list[Path]:
    """Draw the pictures of a site into a folder, in every format.

    Raises:
        ConfigError: a file cannot be written, or there are too few images.
    """
    batch = site.load_batch(0, settings.batch_size, held_out=True)
    canvas = _open_canvas(site, batch, settings.batch_size)
    with style():
        figure = probe_patches.draw(pictures(site, batch, canvas, settings), _describe(site, settings, canvas))
        return save(figure, folder / NAME, flag="--out")


def _open_canvas(site: Site, batch: object, num: int) -> Canvas:
    if isinstance(site, PatchSite):
        return patch_canvas(site, batch)  # type: ignore[arg-type]
    assert isinstance(site, ProjectorSite)
    return token_canvas(site, batch, num)  # type: ignore[arg-type]


def _describe(site: Site, settings: NoiseSettings, canvas: Canvas) -> str:
    how = (
        "noise on the normalised pixels of patches"
        if canvas.r2 is None
        else f"tokens decoded to pixels by ridge regression (R\u00b2 {canvas.r2:.2f})"
    )
    return f"{site.model}, {site.data}, random scores, soft weights at tau {max(settings.tau):g}; {how}"


@torch.no_grad()
def pictures(site: Site, batch: object, canvas: Canvas, settings: NoiseSettings) -> list[Picture]:
    """Return held-out images as they are, and restricted in every form at the first budgets.

    Scores are those of the probe's first batch, and so is the noise behind a projector.

    Args:
        site: where the tokens are.
        batch: the first held-out one.
        canvas: its tokens.
        settings: of the probe; the soft form has its highest temperature.
    """
    scores_RN, keeps = random_scores(site, batch, 0), settings.keep[:NUM_KEEPS]
    forms: dict[tuple[Form, Budget], Sequence[np.ndarray]] = {}
    for keep in keeps:
        gate = _gate(site, batch, canvas, keep, max(settings.tau))
        for form in settings.forms:
            forms[form, keep] = _restrict(canvas, form, scores_RN, gate)
    whole = [canvas.pixels_of(tokens_ND) for tokens_ND in canvas.split(canvas.tokens_RND)]
    scores = [scores_N.double().cpu().numpy() for scores_N in canvas.split(scores_RN)]
    return [
        Picture(
            image=sheet.picture / 255,
            decoded=None if canvas.r2 is None else paint(sheet, whole[number]),
            scores=sheet.paint(scores[number], np.nan),
            forms={key: painted[number] for key, painted in forms.items()},
        )
        for number, sheet in enumerate(canvas.sheets[:NUM_PICTURES])
    ]


def _gate(site: Site, batch: object, canvas: Canvas, keep: Budget, tau: float) -> Gate:
    tokens_RND = canvas.tokens_RND
    generator = generator_of(tokens_RND.device, site.seed, 0)
    noise = torch.randn(tokens_RND.shape, generator=generator, dtype=tokens_RND.dtype, device=tokens_RND.device)
    return replace(draw_gate(site, batch, Way(variant="diffprune"), keep, tau, 0), noise_RND=noise)


def _restrict(canvas: Canvas, form: Form, scores_RN: Tensor, gate: Gate) -> list[np.ndarray]:
    """Return every image with its tokens restricted; what is removed is white."""
    kept_RN = hard_topk_mask(scores_RN, gate.k_R.round(), gate.valid_RN)
    tokens_RND = canvas.tokens_RND
    if form == "soft":
        tokens_RND = throttle(scores_RN, tokens_RND, gate)
    elif form == "mask":
        tokens_RND = vp_noise(tokens_RND, kept_RN.double(), gate.noise_RND)
    painted = []
    for sheet, tokens_ND, kept_N in zip(canvas.sheets, canvas.split(tokens_RND), canvas.split(kept_RN), strict=True):
        pixels = canvas.pixels_of(tokens_ND)
        if form == "removal":
            pixels[~kept_N.cpu().numpy()] = 1.0
        painted.append(paint(sheet, pixels))
    return painted
