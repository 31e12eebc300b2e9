"""Trainings on data that is broken in part or whole: what they skip, count, list and refuse, and when."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_training import log_rows, progress_of, result_of, small_recipe, train_small
from training_data import NO_IMAGE, encoded, write_jsonl, write_tar

from dpbench.backbones.llava import Llava
from dpbench.diffprune import setup, step, training_folder
from dpbench.diffprune.data import split
from dpbench.diffprune.resume import STATE
from dpbench.errors import ConfigError, ImageError


def pictures(folder: Path, num: int, broken: Sequence[int] = ()) -> str:
    """Write images with captions, some broken, and return what --data is given."""
    folder.mkdir()
    for i in range(num):
        (folder / f"{i}.png").write_bytes(NO_IMAGE if i in broken else encoded(i % 250))
    write_jsonl(folder / "all.jsonl", [{"image": f"{i}.png", "caption": f"picture {i}"} for i in range(num)])
    return str(folder)


def broken_names(out: Path) -> list[str]:
    lines = (out / "broken.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(Path(json.loads(line)["broken"].split(":")[0]).name for line in lines)


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a backbone is loaded: minutes, for data that cannot be used."""

    def load(*_: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(setup, "_load_frozen_backbone", load)


@pytest.mark.usefixtures("no_backbone")
@pytest.mark.parametrize("kind", ["all broken", "several images under a key", "back-slashes"])
def test_data_without_a_readable_held_out_image_is_refused_at_opening(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    if kind == "all broken":
        pictures(data, 9, range(9))
        reason = "PIL does not know the format of its 24 bytes"
    elif kind == "back-slashes":
        pictures(data, 9)
        write_jsonl(data / "all.jsonl", [{"image": f"sub\\{i}.png", "caption": "a"} for i in range(9)])
        reason = "there is no such file; write its path with / in place of back-slashes"
    else:
        data.mkdir()
        write_tar(data / "a.tar", {f"{key}.{i}.png": encoded(i) for key in range(9) for i in range(2)})
        reason = "several images have the same key"
    with pytest.raises(ConfigError, match="none of the 4 held-out images can be read with a caption; repair") as error:
        train_small(tmp_path / "out", data=str(data), num_validation=4)
    assert reason in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_backbone")
def test_more_than_one_percent_of_the_held_out_images_is_refused_before_a_validation(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 40, range(0, 40, 2))
    with pytest.raises(ConfigError, match=r"of 20 examples read are broken, .* where 1% is allowed; repair"):
        train_small(tmp_path / "out", data=data, num_validation=20)


def held_out_names(num: int, num_validation: int) -> list[int]:
    """Return which pictures of `num` are held out."""
    return [int(i) for i in split(num, fraction=1, num_validation=num_validation, seed=0).validation]


@pytest.mark.slow  # the tests of resuming and of the list of broken images pin its parts
def test_one_broken_held_out_image_is_left_out_listed_and_the_same_after_resuming(tmp_path: Path) -> None:
    held = held_out_names(300, 120)
    data = pictures(tmp_path / "data", 300, held[:1])
    settings = {"data": data, "num_validation": 120, "keep": "16", "validate_every": 50}
    ended = train_small(tmp_path / "out", **settings, steps=1)
    assert ended.num_broken == 1
    assert broken_names(tmp_path / "out") == [f"{held[0]}.png"]
    assert progress_of(tmp_path / "out")["num_held_out"] == 119
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / f"{held[0]}.png")
    with pytest.raises(ConfigError, match="begun with 119 held-out images that could be read, now there are 120"):
        train_small(tmp_path / "out", **settings, steps=1, resume=True)


def test_a_held_out_image_that_breaks_later_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses before and after would be over other images, and the best of them meaningless."""
    data = pictures(tmp_path / "data", 20)
    held = held_out_names(20, 4)
    real = setup.build_setup

    def build_then_break(*arguments: object) -> setup.Setup:
        built = real(*arguments)  # type: ignore[arg-type]
        (tmp_path / "data" / f"{held[2]}.png").write_bytes(NO_IMAGE)
        return built

    monkeypatch.setattr("dpbench.diffprune.train.build_setup", build_then_break)
    with pytest.raises(ConfigError, match="1 held-out images could be read when the training was started") as error:
        train_small(tmp_path / "out", data=data, num_validation=4)
    assert f"{held[2]}.png" in str(error.value)


@pytest.mark.parametrize("place", [pytest.param("training", marks=pytest.mark.slow), "validation"])
def test_an_image_that_the_backbone_refuses_costs_that_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    data = pictures(tmp_path / "data", 130)
    held = held_out_names(130, 110)
    victim = held[0] if place == "validation" else next(i for i in range(130) if i not in held)
    (tmp_path / "data" / f"{victim}.png").write_bytes(encoded(255))

    def check_image(self: Llava, image: Image.Image) -> None:
        if image.getpixel((0, 0)) == (255, 255, 255):
            raise ImageError("an image of 6 x 4 pixels is too long")

    monkeypatch.setattr(Llava, "check_image", check_image)
    out = tmp_path / "out"
    ended = train_small(out, data=data, num_validation=110, keep="16", steps=1, batch_size=20, validate_every=9)
    assert ended.num_broken == 1
    (line,) = (out / "broken.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["broken"] == (f"example {victim}, counted from 0: an image of 6 x 4 pixels is too long")


def test_the_list_of_broken_images_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "data", 8)
    settings = {"data": data, "num_validation": 2, "keep": "16", "steps": 6, "batch_size": 3, "validate_every": 2}
    victims = [i for i in range(8) if i not in held_out_names(8, 2)][:2]
    for victim in victims:
        (tmp_path / "data" / f"{victim}.png").write_bytes(NO_IMAGE)
    monkeypatch.setattr("dpbench.diffprune.broken.BROKEN_RATIO", 1)
    train_small(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop = iter(range(9))

        def stop_in_the_third(*_: object) -> bool:
            if next(stop) == 2:
                raise MemoryError("killed")
            return real(*_)  # type: ignore[no-any-return, arg-type]

        real: object = step.optimizer_step
        patch.setattr(step, "optimizer_step", stop_in_the_third)
        with pytest.raises(MemoryError):
            train_small(tmp_path / "parts", **settings)
    train_small(tmp_path / "parts", **settings, resume=True)
    assert (tmp_path / "parts" / "broken.jsonl").read_text() == (tmp_path / "whole" / "broken.jsonl").read_text()
    assert result_of(tmp_path / "parts") == result_of(tmp_path / "whole")
    assert log_rows(tmp_path / "parts")


@pytest.fixture(scope="module")
def checkpoint_bytes(trained: Path) -> bytes:
    return (trained / STATE).read_bytes()


@pytest.mark.parametrize("size", [0, 5, 100, -1000])
def test_a_cut_checkpoint_is_one_sentence(tmp_path: Path, checkpoint_bytes: bytes, size: int) -> None:
    (tmp_path / STATE).write_bytes(checkpoint_bytes[:size])
    with pytest.raises(ConfigError, match=r"^--resume: .*training\.safetensors is damaged \(.*\), perhaps by") as error:
        train_small(tmp_path, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metadata", [None, {"recipe": "{"}, {"state": "{}"}])
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / STATE, metadata)
    with pytest.raises(ConfigError, match=r"training\.safetensors is damaged \("):
        train_small(tmp_path, resume=True)


def test_a_checkpoint_of_another_version_is_one_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe is that of this training, its state or its weights are not."""
    with safe_open(trained / STATE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    first = next(name for name in tensors if name.startswith("scorer."))
    for odd, written in (
        (tensors | {first: tensors[first][:1]}, metadata),
        (tensors, metadata | {"state": json.dumps({"step": 1, "unknown": 2})}),
    ):
        save_file(odd, tmp_path / STATE, written)
        with pytest.raises(ConfigError, match=r"training\.safetensors is damaged \("):
            train_small(tmp_path, resume=True)


def test_a_checkpoint_from_before_a_setting_existed_is_resumed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe().model_dump(mode="json")
    del recipe["caption"]
    monkeypatch.setattr("dpbench.diffprune.resume.read_recipe", lambda _: recipe)
    training_folder.check(small_recipe(), trained, is_resumed=True)
    with pytest.raises(ConfigError, match="begun with caption = first, now it is random"):
        training_folder.check(small_recipe(caption="random"), trained, is_resumed=True)
