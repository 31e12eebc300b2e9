"""From flags to what `dpbench profile` measures: defaults, lists, sizes, and one sentence for each mistake."""

from pathlib import Path

import pytest

from dpbench.cli import profile_arguments
from dpbench.cli.arguments import CellFlags
from dpbench.cli.profile_arguments import ProfileFlags, build_comparison, build_settings, parse_image_size
from dpbench.errors import ConfigError


def test_by_default_every_method_keeps_sixteen_tokens_of_the_embedded_backbone() -> None:
    manifest = profile_arguments.name_after_device(build_comparison(None, CellFlags()), "cpu")
    assert manifest.backbone.name == "toy-llava"
    assert manifest.methods[0].name == "none"
    assert {"fastv", "diffprune", "holov"} < {method.name for method in manifest.methods}
    assert manifest.budgets is not None
    assert manifest.budgets.keep == [16]
    assert manifest.name == "profile-cpu"
    settings = build_settings(manifest, ProfileFlags())
    assert (settings.seconds, settings.repetitions, settings.batch_sizes) == (2.0, 50, (1,))
    assert settings.configurations == ("eager",)


def test_other_backbones_are_measured_for_ten_seconds() -> None:
    flags = CellFlags(backbone="llava-1.5", methods=["none", "fastv", "holov"], keep=[64, 128, 192])
    manifest = build_comparison(None, flags)
    assert [method.name for method in manifest.methods] == ["none", "fastv", "holov"]
    assert manifest.budgets is not None
    assert manifest.budgets.keep == [64, 128, 192]
    settings = build_settings(manifest, ProfileFlags(batch_size=["1,8"], cuda_graph=True, compiled=True))
    assert settings.seconds == 10.0
    assert settings.batch_sizes == (1, 8)
    assert settings.configurations == ("eager", "compile", "cuda-graph")


def test_a_sweep_repeats_less() -> None:
    manifest = build_comparison(None, CellFlags())
    settings = build_settings(manifest, ProfileFlags(sweep="visual-tokens"))
    assert (settings.seconds, settings.repetitions, settings.sweep) == (0.0, 5, "visual-tokens")


@pytest.mark.parametrize(
    ("path", "flags", "sentence"),
    [
        (None, CellFlags(keep=[16], prune_rate=[0.5]), "--keep and --prune-rate both set the budget"),
        (None, CellFlags(keep=[0]), "--keep: must be at least 1, got 0"),
        (None, CellFlags(keep=[1000]), "--keep: 1000 is more than the 144 visual tokens of toy-llava"),
        (None, CellFlags(prune_rate=[1.0]), "--prune-rate: must be at least 0 and below 1, got 1.0"),
        (None, CellFlags(backbone="llava-1.5"), "--backbone llava-1.5 needs a budget"),
        (None, CellFlags(methods=["holow"]), "did you mean 'holov'"),
        (None, CellFlags(params=["layer=3"]), "--param belongs to one method"),
        (Path("quickstart"), CellFlags(params=["layer=3"]), "set it in quickstart, under methods"),
    ],
)
def test_wrong_cells_are_one_sentence(path: Path | None, flags: CellFlags, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_comparison(path, flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (ProfileFlags(batch_size=["0"]), "--batch-size: must be at least 1, got 0"),
        (ProfileFlags(batch_size=["1,x"]), "--batch-size: 'x' is not a whole number"),
        (ProfileFlags(image_size="336x"), "--image-size: '336x' is not a size in pixels"),
        (ProfileFlags(image_size="1x2x3"), "--image-size: '1x2x3' is not a size"),
    ],
)
def test_wrong_settings_are_one_sentence(flags: ProfileFlags, sentence: str) -> None:
    manifest = build_comparison(None, CellFlags(methods=["grid"]))
    with pytest.raises(ConfigError, match=sentence):
        build_settings(manifest, flags)


def test_image_sizes_are_height_by_width_or_a_square() -> None:
    assert parse_image_size("672x1008") == (672, 1008)
    assert parse_image_size("336") == (336, 336)
    assert parse_image_size(None) is None
