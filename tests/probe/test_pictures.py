"""Pictures of noised patches: kept patches are the image's, removed ones are white, noise is as loud as its patch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_classifier import save_classifier, save_images
from rich.console import Console
from small_training import small_recipe

from dpbench.diffprune.example import BrokenError
from dpbench.diffprune.objective import generator_of
from dpbench.probe import canvas, launch, pictures
from dpbench.probe.canvas import Canvas, fit_ridge, paint, patch_canvas, token_canvas
from dpbench.probe.noise import random_scores
from dpbench.probe.patch_site import PatchSite, open_patch_site
from dpbench.probe.projector_site import ProjectorSite, open_projector_site
from dpbench.probe.settings import NoiseSettings
from dpbench.report.figures import files
from dpbench.visualize.picture import Sheet

SETTINGS = NoiseSettings(keep=(0.75, 0.25), batches=2, batch_size=2, held_out=2, tau=(0.15,))


@pytest.fixture(scope="module")
def site() -> ProjectorSite:
    return open_projector_site(small_recipe(num_validation=4), device="cpu", console=Console(quiet=True))


@pytest.fixture(scope="module")
def tokens(site: ProjectorSite) -> Canvas:
    return token_canvas(site, site.load_batch(0, 2, held_out=True), 2)


def patches(picture: Any, side: int) -> Any:
    """Return the patches of a picture, row by row, (N, side, side, 3)."""
    height, width = (size // side for size in picture.shape[:2])
    return picture.reshape(height, side, width, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def test_ridge_regression_finds_a_linear_map_with_its_intercept_from_batches() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(3, 1, (400, 5)), rng.normal(size=(5, 2))
    y = x @ weights + 7
    decode = fit_ridge((x[part], y[part]) for part in (slice(100), slice(100, 400)))
    assert decode(x) == pytest.approx(y, abs=0.02)
    centred, spread = x - x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0)) / 400
    penalty = canvas.RIDGE * spread.diagonal().mean() * np.eye(5)
    exact = np.linalg.solve(spread + penalty, centred.T @ (y - y.mean(0)) / 400)
    assert decode(x) == pytest.approx(centred @ exact + y.mean(0), abs=1e-9)


def test_tokens_decode_to_the_colours_of_their_objects(site: ProjectorSite, tokens: Canvas) -> None:
    assert tokens.r2 is not None
    assert 0.25 < tokens.r2 < 1
    batch = site.load_batch(0, 2, held_out=True)
    assert torch.equal(tokens.tokens_RND, site.tokens(batch))
    image = site.setup.source[int(site.setup.split.validation[0])].image
    assert np.abs(tokens.sheets[0].picture.astype(float) - np.asarray(image)).max() <= 1


def test_removed_tokens_are_white_and_kept_ones_decode_as_in_the_whole_image(
    site: ProjectorSite, tokens: Canvas
) -> None:
    batch = site.load_batch(0, 2, held_out=True)
    drawn = pictures.pictures(site, batch, tokens, SETTINGS)
    scores_RN = random_scores(site, batch, 0)
    side = tokens.sheets[0].cell
    for number, picture in enumerate(drawn):
        whole = patches(picture.decoded, side)
        for keep, count in ((0.75, 108), (0.25, 36)):
            kept_N = np.isin(np.arange(144), scores_RN[number].topk(count).indices.numpy())
            removed, noised = (patches(picture.forms[form, keep], side) for form in ("removal", "mask"))
            assert np.array_equal(removed[kept_N], whole[kept_N])
            assert (removed[~kept_N] == 1).all()
            assert noised[kept_N] == pytest.approx(whole[kept_N], abs=1e-3)
            assert np.abs(noised[~kept_N] - whole[~kept_N]).mean() > 0.1
        assert list(picture.whole) == ["image", "all, decoded", "scores"]
        assert picture.scores[::side, ::side].ravel() == pytest.approx(scores_RN[number].numpy())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> PatchSite:
    folder = tmp_path_factory.mktemp("classifier")
    model, data = save_classifier(folder / "deit-mini", "deit"), save_images(folder / "images")
    return open_patch_site(str(model), str(data), seed=0, device="cpu")


def test_noise_is_laid_on_the_normalised_pixels_as_loud_as_each_patch(classifier: PatchSite) -> None:
    batch = classifier.load_batch(0, 2, held_out=True)
    mean, std = (np.array(part) for part in (classifier.processor.image_mean, classifier.processor.image_std))
    read = batch.pixels.permute(0, 2, 3, 1).numpy()
    on_pixels = patch_canvas(classifier, batch)
    drawn = pictures.pictures(classifier, batch, on_pixels, SETTINGS)
    # a token holds all reds of its patch, then all greens, then all blues
    noise = torch.randn((2, 16, 48), generator=generator_of(torch.device("cpu"), 0, 0))
    noise_as_pixels = noise.reshape(2, 16, 3, 4, 4).permute(0, 1, 3, 4, 2).numpy()
    for number, picture in enumerate(drawn):
        assert picture.image == pytest.approx(np.clip(read[number] * std + mean, 0, 1), abs=0.51 / 255)
        assert list(picture.whole) == ["image", "scores"]
        kept_N = np.isin(np.arange(16), random_scores(classifier, batch, 0)[number].topk(4).indices.numpy())
        found, original = patches(picture.forms["mask", 0.25], 4), patches(read[number], 4)
        loud = np.sqrt((original**2).mean((1, 2, 3), keepdims=True)) * noise_as_pixels[number]
        wanted = np.where(kept_N[:, None, None, None], original, loud)
        assert found == pytest.approx(np.clip(wanted * std + mean, 0, 1), abs=1e-3)


def test_patches_without_a_place_are_not_painted_and_the_rest_stays_white() -> None:
    sheet = Sheet(np.zeros((4, 4, 3), np.uint8), np.array([[2, 0], [-1, -1], [0, 2]]), 2)
    painted = paint(sheet, np.stack([np.full((2, 2, 3), value) for value in (0.1, 0.2, 0.3)]))
    assert painted[..., 0].tolist() == [[1, 1, 0.1, 0.1]] * 2 + [[0.3, 0.3, 1, 1]] * 2


def test_a_training_image_that_cannot_be_read_is_passed_over(
    site: ProjectorSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(site.setup.source).__getitem__

    def broken(source: Any, index: int) -> Any:
        if index == int(site.setup.split.training[0]):
            raise BrokenError("no image")
        return read(source, index)

    monkeypatch.setattr(type(site.setup.source), "__getitem__", broken)
    examples = canvas._read(site, site.setup.split.training, 2)
    assert [each.caption for each in examples] == [
        read(site.setup.source, int(index)).caption for index in site.setup.split.training[1:3]
    ]


def test_the_command_writes_the_pictures_next_to_the_records(
    site: ProjectorSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FORMATS", ("svg",))
    monkeypatch.setattr(canvas, "NUM_TRAINING", 4)
    settings = SETTINGS.model_copy(update={"scores": ("random",), "forms": ("removal",), "keep": (0.5,)})
    for _ in range(2):
        launch.launch("noise", lambda *_: site, settings, tmp_path, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"probes.jsonl", "noised-patches.svg"}


def test_large_patches_are_reduced_to_the_mean_of_their_pixels_and_stay_in_place() -> None:
    picture = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12, 1).repeat(3, 2)
    sheet = canvas._reduce(Sheet(picture, np.array([[8, 4], [-1, -1], [0, 0]]), 4), 2)
    assert (sheet.cell, sheet.picture.shape) == (2, (4, 6, 3))
    assert sheet.corner_N2.tolist() == [[4, 2], [-1, -1], [0, 0]]
    assert sheet.picture[0, 0, 0] == pytest.approx(picture[:2, :2].mean(), abs=1)
    assert sheet.picture[3, 5, 0] == pytest.approx(picture[6:, 10:].mean(), abs=1)
