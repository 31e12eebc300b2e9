"""Tokens of every family of backbones have their places on the canvas, several views and sizes in one batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dpbench.backbones import miniatures
from dpbench.diffprune.data import Split
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example
from dpbench.diffprune.objective import Objective
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.probe import pictures
from dpbench.probe.canvas import token_canvas
from dpbench.probe.projector_site import ProjectorSite
from dpbench.probe.settings import NoiseSettings

SETTINGS = NoiseSettings(keep=(0.5,), batches=2, batch_size=2, held_out=2, tau=(0.15,))


def open_miniature(family: str) -> ProjectorSite:
    """Return the site of a miniature, with pictures of several sizes."""
    rng = np.random.default_rng(0)
    sizes = ((60, 100), (40, 200), (60, 60), (60, 100), (80, 60))
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    model = miniatures.backbone(family)
    size = ScorerSize(width=model.decoder.config.hidden_size, hidden=16, heads=2, ffn=2)
    setup = SimpleNamespace(
        objective=Objective(model, Scorer(size).double(), Denoiser(size).double(), "diffprune", "Describe ."),
        recipe=SimpleNamespace(backbone=family, data="made", seed=0),
        source=[Example(image, "a red circle") for image in images],
        split=Split(training=np.array([2, 3, 4]), validation=np.array([0, 1])),
    )
    return ProjectorSite(setup)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_every_family_is_drawn_with_kept_tokens_as_in_the_whole_image(family: str) -> None:
    with torch.random.fork_rng([]):
        site = open_miniature(family)
        batch = site.load_batch(0, 2, held_out=True)
        canvas = token_canvas(site, batch, 2)
        drawn = pictures.pictures(site, batch, canvas, SETTINGS)
    for picture, sheet in zip(drawn, canvas.sheets, strict=True):
        removed, noised = picture.forms["removal", 0.5], picture.forms["mask", 0.5]
        assert removed.shape == picture.decoded.shape == picture.image.shape
        is_white = (removed == 1).all(-1)
        seen = ~np.isnan(picture.scores)
        cells = (removed == picture.decoded).all(-1) & ~is_white
        assert 0 < cells.sum() < seen.sum()
        assert (is_white | cells).all()
        assert noised[cells] == pytest.approx(picture.decoded[cells], abs=1e-3)
        assert seen.sum() == (sheet.corner_N2[:, 0] >= 0).sum() * sheet.cell**2
