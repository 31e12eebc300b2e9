"""The scorer behind the patch embedding of a ViT or DeiT: equal to transformers, and removal equal to masking."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_classifier import MODELS, save_classifier, save_images
from PIL import Image
from rich.console import Console
from torch import Tensor

from dpbench.errors import ConfigError, MissingError
from dpbench.probe import runner
from dpbench.probe.coherence import COHERENCE
from dpbench.probe.noise import NOISE
from dpbench.probe.patch_site import PatchSite, open_patch_site
from dpbench.probe.settings import CoherenceSettings, NoiseSettings, find_way
from dpbench.probe.site import throttled_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module", params=list(MODELS))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path) -> PatchSite:
    folder = save_classifier(tmp_path_factory.mktemp(request.param) / "deit-mini", request.param)
    return open_patch_site(str(folder), str(data), seed=0, device="cpu")


def test_all_patches_give_transformers_logits(site: PatchSite) -> None:
    batch = site.load_batch(0, 4)
    with torch.no_grad():
        wanted = site.classifier(batch.pixels).logits
        for found, labels in (
            site.predict(batch, site.tokens(batch)),
            site.predict_kept(batch, torch.ones(4, 16, dtype=torch.bool)),
        ):
            assert torch.equal(found, wanted)
            assert torch.equal(labels, batch.labels_B)


def test_a_removed_patch_is_one_that_nothing_attends_to(site: PatchSite) -> None:
    batch, kept = site.load_batch(0, 2), torch.zeros(2, 16, dtype=torch.bool)
    kept[0, [1, 5, 11]] = kept[1, [0, 2, 15]] = True
    seen = torch.cat([torch.ones(2, batch.num_front, dtype=torch.bool), kept], 1)
    with torch.no_grad():
        found, _ = site.predict_kept(batch, kept)
        wanted = site.classifier(batch.pixels, attention_mask=seen.long()).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_images_and_classes_are_those_of_the_folder(site: PatchSite, data: Path) -> None:
    assert site.images.classes == ("n01", "n02", "n03")
    image, label = site.images[9]
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(data / "n02" / "1.png")))
    assert label == 1
    assert (len(site.split.training), len(site.split.validation)) == (12, 12)


def test_gradients_reach_the_scorer_and_nothing_else(site: PatchSite) -> None:
    loss = throttled_loss(site, site.load_batch(0, 2), find_way("diffprune"), keep=4, tau=0.05, noise=0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in site.scorer.parameters())
    assert all(parameter.grad is None for parameter in site.classifier.parameters())


def test_both_probes_run_on_a_classifier(site: PatchSite, tmp_path: Path) -> None:
    quiet, small = Console(quiet=True), {"batch_size": 2, "held_out": 2, "keep": (4,), "tau": (0.15,)}
    settings = CoherenceSettings(**small, batches=3, ways=("diffprune",), sources=("both",))
    (line,) = runner.probe(COHERENCE, site, settings, tmp_path, device="cpu", console=quiet)
    assert (line.site, line.model) == ("patch", "deit-mini")
    assert line.shared["parameters"] == 24 * 24 + 24 + 24 + 1
    noise = NoiseSettings(**{**small, "keep": (0.25,)}, batches=2, scores=("random",))
    lines = runner.probe(NOISE, site, noise, tmp_path, device="cpu", console=quiet)
    assert [one.setting["form"] for one in lines] == ["unpruned", "removal", "mask", "soft"]


def test_parquet_files_are_read_as_the_folder(site: PatchSite, data: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(data.glob("*/*.png"))
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [int(file.parent.name[-1]) - 1 for file in files],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    from dpbench.probe.labelled_images import open_labelled_images

    images = open_labelled_images(str(tmp_path), 3)
    for index in (0, 9, 23):
        mine, wanted = images[index], site.images[index]
        assert np.array_equal(np.asarray(mine[0]), np.asarray(wanted[0]))
        assert mine[1] == wanted[1]


def refusal(classifier: Path | str, data: Path | str) -> str:
    with pytest.raises((ConfigError, MissingError)) as caught:
        open_patch_site(str(classifier), str(data), seed=0, device="cpu")
    return str(caught.value)


def test_what_cannot_be_probed_is_refused_in_a_sentence(tmp_path: Path, data: Path) -> None:
    folder = save_classifier(tmp_path / "deit", "deit")
    assert "hf download facebook/deit-none" in refusal("facebook/deit-none", data)
    assert "there is no such folder or parquet file" in refusal(folder, tmp_path / "nothing")
    save_images(tmp_path / "two", 2)
    (tmp_path / "two" / "n03").rename(tmp_path / "elsewhere")
    assert "2 classes, the classifier knows 3" in refusal(folder, tmp_path / "two")


def test_weights_that_are_missing_are_refused(tmp_path: Path, data: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_classifier(tmp_path / "deit", "deit")
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "classifier" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert f"1 weights are missing ({name}" in refusal(folder, data)


def test_a_model_without_patches_is_refused(tmp_path: Path, data: Path) -> None:
    folder = save_classifier(tmp_path / "deit", "deit")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["model_type"] = "nothing"
    (folder / "config.json").write_text(json.dumps(config))
    assert "not an image classifier of transformers" in refusal(folder, data)


def test_a_trained_scorer_does_not_fit(site: PatchSite) -> None:
    with pytest.raises(ConfigError, match="a classifier is probed with a fresh one"):
        site.load_scorer(Path("scorers/x"))
