"""`dpbench visualize`: what is drawn is what the engine applied, on every backbone, and bad images are one sentence."""

import errno
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpbench import registry
from dpbench.backbones import miniatures
from dpbench.backbones.llava import Llava
from dpbench.budget import BudgetRequest
from dpbench.cli import commands
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import Rule
from dpbench.errors import ConfigError
from dpbench.storage import files
from dpbench.visualize import decisions
from dpbench.visualize.picture import ROWS, Kept, Sheet, draw, write

Picture = Callable[[int], Image.Image]


def test_the_sheet_is_the_image_and_kept_is_what_the_method_keeps(tiny: Llava, picture: Picture) -> None:
    image = picture(0)
    (found,) = decisions.decide(tiny, image, ["cls-attention"], Rule(BudgetRequest(keep=16)), "")
    method = registry.load("cls-attention").bind(tiny)
    (features,) = tiny.encode(tiny.prompt([image], "").pixels, method.needs(tiny.provides))
    visual = decision.visual_tokens(features, "", decision.image_generator(0, decisions.SAMPLE, 0))
    assert found.tokens_K.tolist() == sorted(method.reduce(visual, 16).indices_K.tolist())
    assert np.array_equal(found.sheet.picture, np.asarray(image))
    assert found.sheet.corner_N2[13].tolist() == [8, 8]
    assert found.title == "cls-attention\n16 of 144"


def test_top_and_bottom_are_the_ends_of_one_ranking(tiny: Llava, picture: Picture) -> None:
    (found,) = decisions.decide(tiny, picture(1), ["cls-attention"], Rule(BudgetRequest(keep=20)), "")
    order = np.argsort(-found.scores_N, kind="stable")
    assert set(found.tokens_K) == set(order[:20])
    assert set(found.dropped_K) == set(order[-20:])


@pytest.mark.parametrize("family", miniatures.FAMILIES)
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_stages_inside_the_llm_are_the_rows_that_survive(family: str, name: str, picture: Picture) -> None:
    backbone = miniatures.backbone(family)
    image, rule = picture(2).resize((150, 96)), Rule(BudgetRequest(prune_rate=0.5))
    found = decisions.decide(backbone, image, [name], rule, "What?")
    method = registry.load(name).bind(backbone)
    prompt = backbone.prompt([image], "What?")
    (features,) = backbone.encode(prompt.pixels, method.needs(backbone.provides))
    generators = [decision.image_generator(0, decisions.SAMPLE, 0)]
    spliced = pruned_prompt.splice(backbone, method, prompt, [features], generators, rule)
    (generated,) = forward.generate(backbone, method, [spliced], max_new_tokens=1)
    rows = spliced.embeds_LD[spliced.visual_L]
    assert len(found) == len(generated.kept_rows) == len(spliced.cuts)
    for each, survivors in zip(found, generated.kept_rows, strict=True):
        nearest = torch.cdist(rows[survivors], features.embeds_ND).argmin(1)
        assert each.tokens_K.tolist() == sorted(nearest.tolist())
    for before, after in pairwise(found):
        assert set(after.tokens_K) <= set(before.tokens_K)
        assert set(np.flatnonzero(np.isfinite(after.scores_N))) == set(before.tokens_K)


def test_tiles_are_one_map_beside_the_base_view(picture: Picture) -> None:
    backbone = miniatures.backbone("llava_next")
    image = Image.new("RGB", (150, 96), (200, 30, 30))
    image.paste((30, 30, 200), (75, 0, 150, 96))
    (found,) = decisions.decide(backbone, image, ["none"], Rule(), "")
    sheet = found.sheet
    read = sheet.corner_N2[:, 0] >= 0
    assert len(np.unique(sheet.corner_N2[read], axis=0)) == read.sum()
    tiles = sheet.corner_N2[16:][read[16:]]
    columns, rows = (len(np.unique(tiles[:, axis])) for axis in (0, 1))
    assert columns * rows == len(tiles)
    assert tiles[:, 0].min() >= 5 * sheet.cell  # the base view's four columns, and a gap
    middle = (tiles[:, 0].min() + tiles[:, 0].max() + sheet.cell) // 2
    line = sheet.picture[tiles[:, 1].max() // 2 + sheet.cell // 2]
    assert line[middle - sheet.cell].tolist() == pytest.approx([200, 30, 30], abs=3)
    assert line[middle + sheet.cell].tolist() == pytest.approx([30, 30, 200], abs=3)


def test_a_smaller_image_has_a_sheet_of_its_own(tiny: Llava, picture: Picture) -> None:
    (found,) = decisions.decide(tiny, picture(3), ["downsample"], Rule(BudgetRequest(keep=16)), "")
    assert found.title == "downsample\n16 of 16"
    assert found.sheet.picture.shape == (32, 32, 3)


def decision_of(tokens: list[int], scores: list[float] | None) -> Kept:
    corners = np.array([[0, 0], [4, 0], [0, 4], [4, 4]])
    sheet = Sheet(np.full((8, 8, 3), 100, dtype=np.uint8), corners, 4)
    unit = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], dtype=np.float32)
    return Kept("m\n1 of 4", sheet, np.array(tokens), np.array(scores or [np.nan] * 4), unit)


def test_cosines_are_between_the_kept_and_the_lowest() -> None:
    found = decision_of([0, 3], [5.0, 1.0, 2.0, 9.0])
    assert found.dropped_K.tolist() == [2, 1]
    assert np.allclose(found.similarity, [[1, 0.6, 0.6, 0.8], [0.6, 1, 1, 0], [0.6, 1, 1, 0], [0.8, 0, 0, 1]])
    assert decision_of([1], None).dropped_K.tolist() == [0]


def test_dropped_patches_are_dark_and_kept_ones_untouched() -> None:
    figure = draw([decision_of([0], [5.0, 1.0, 2.0, 9.0])], ["kept", "lowest"])
    kept, lowest = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert [kept[y, x, 0] for y, x in ((1, 1), (1, 5), (5, 1), (5, 5))] == [100, 18, 18, 18]
    assert [lowest[y, x, 0] for y, x in ((1, 1), (1, 5), (5, 1), (5, 5))] == [18, 100, 18, 18]


def test_rows_that_no_method_can_fill_are_left_out() -> None:
    figure = draw([decision_of([0], None)], ROWS)
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["kept", "cosine similarity"]


@pytest.mark.parametrize("place", ["file", "/proc/dpbench"])
def test_a_picture_that_cannot_be_written_is_one_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / place / "kept.png"
    with pytest.raises(ConfigError, match=r"--out: .*; give "):
        write([decision_of([0], None)], ["kept"], out)


def test_a_disk_that_turns_read_only_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(files, "replace", refuse)
    with pytest.raises(ConfigError, match=r"--out: .*kept.png cannot be written \(Read-only file system\)"):
        write([decision_of([0], None)], ["kept"], tmp_path / "kept.png")


@pytest.fixture
def bad(tmp_path: Path, picture: Picture) -> Path:
    picture(0).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.png", r"is empty \(0 bytes\); give a complete image"),
        ("cut.png", r"cannot be read \(.*truncated.*\); give a complete image"),
        ("text.png", "is not an image that Pillow can read; give a PNG"),
        ("", "is a folder; give an image file"),
        ("missing.png", "there is no file .*missing.png; give an image file"),
    ],
)
def test_a_bad_image_is_one_sentence(name: str, said: str, bad: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        decisions.read_image(bad / name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "randm", "--keep", "4"], "did you mean 'random'"),
        (["--method", "random"], "give --keep K or --prune-rate R"),
        (["--method", "random", "--keep", "4", "--prune-rate", "0.5"], "give one of them"),
        (["--method", "random", "--keep", "145"], "145 is more than the 144 visual tokens of toy-llava"),
        (["--method", "random", "--prune-rate", "1"], "--prune-rate: must be at least 0 and below 1, got 1.0"),
        (["--method", "random", "--keep", "4", "--show", "kep"], "did you mean 'kept'"),
        (["--method", "random", "--keep", "4", "--out", "a.gif"], "ends in .png, .pdf or .svg"),
        (["--method", "random", "--keep", "4", "--weights", "random"], "mean nothing"),
        (["--method", "random", "--keep", "4", "--backbone", "toy"], "did you mean 'toy-llava'"),
    ],
)
def test_a_bad_flag_is_one_sentence_before_anything_loads(
    arguments: list[str],
    said: str,
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpbench", "visualize", str(bad / "good.png"), *arguments])
    monkeypatch.setattr(decisions.backbones, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as done:
        commands.main()
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_draws_a_picture(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = bad / "deep" / "kept.png"
    names = "none,random,diffprune,fastv"
    words = ["visualize", str(bad / "good.png"), "--method", names, "--keep", "16", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["dpbench", *words])
    with pytest.raises(SystemExit) as done:
        commands.main()
    assert not done.value.code
    with Image.open(out) as drawn:
        assert drawn.width > 800
