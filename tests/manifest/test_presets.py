"""Protocols by name: what each preset fills in on each backbone, and that a cell holds values and not names."""

from typing import Any

import pytest

from dpbench import backbones
from dpbench.errors import ConfigError
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest

QWEN_PIXELS = {"min_pixels": 200_704, "max_pixels": 1_605_632}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-1.5": {
        "prompt": "vicuna_v1", "ocr": True, "wording": "llava", "reading": "llava", "image_aspect": "pad",
        "grids": None, "dtype": "float16", "min_pixels": None, "max_pixels": None,
    },
    "llava-next": {
        "prompt": "vicuna_v1", "ocr": False, "wording": "llava", "reading": "llava", "image_aspect": None,
        "grids": "llava", "dtype": "float16", "min_pixels": None, "max_pixels": None,
    },
    "qwen2.5-vl": {
        "prompt": "template", "ocr": False, "wording": "lmms-eval", "reading": "first-word", "image_aspect": None,
        "grids": None, "dtype": "bfloat16", **QWEN_PIXELS,
    },
}  # fmt: skip


def cells_of(backbone: Any, protocol: Any, **entries: Any) -> list[Cell]:
    data = {"name": "case", "backbone": backbone, "methods": ["none"], "tasks": ["textvqa"], "protocol": protocol}
    return list(cells(make_manifest(data | entries, source="case")))


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_published_is_the_protocol_of_the_papers_table_in_one_word(backbone: str) -> None:
    (cell,) = cells_of(backbone, "published")
    assert {name: cell.to_json()[name] for name in PUBLISHED[backbone]} == PUBLISHED[backbone]
    by_hand = {name: value for name, value in PUBLISHED[backbone].items() if value is not None}
    assert cells_of(backbone, by_hand)[0].id == cell.id


def test_a_field_set_by_hand_comes_before_the_preset() -> None:
    (cell,) = cells_of("llava-1.5", {"preset": "published", "ocr": False, "image_aspect": "crop", "dtype": "bfloat16"})
    assert (cell.protocol.ocr, cell.protocol.image_aspect, cell.protocol.dtype) == (False, "crop", "bfloat16")
    assert cell.protocol.wording == "llava"


def test_without_a_preset_the_wording_is_lmms_evals_and_the_rest_the_backbones() -> None:
    for name, family in backbones.FAMILIES.items():
        (cell,) = cells_of(name, {})
        protocol = cell.protocol
        assert (protocol.wording, protocol.reading, protocol.dtype) == ("lmms-eval", "first-word", "float32")
        assert protocol.grids == ("transformers" if family.tiles else None)
        assert protocol.ocr is name.startswith("llava-1.5")
        assert protocol.image_aspect == ("pad" if name.startswith(("llava-1.5", "toy")) else None)
        is_vicuna = name in ("llava-1.5", "llava-1.5-13b", "llava-next", "llava-next-13b")
        assert protocol.prompt == ("vicuna_v1" if is_vicuna else "template")
        assert (protocol.min_pixels == 200_704) is name.startswith("qwen")


def test_llavas_protocol_differs_from_lmms_evals_in_wording_reading_and_grids() -> None:
    for name in ("llava-1.5", "llava-next", "toy-llava"):
        plain, llava = (cells_of(name, preset)[0].to_json() for preset in ("lmms-eval", "llava"))
        changed = {field for field in plain if plain[field] != llava[field]}
        assert changed == {"wording", "reading"} | ({"grids"} if name == "llava-next" else set())


def test_the_toy_has_no_published_protocol() -> None:
    with pytest.raises(ConfigError, match="no table of the paper measures toy-llava"):
        cells_of("toy-llava", "published")


@pytest.mark.parametrize(
    ("backbone", "protocol", "message"),
    [
        ("llava-1.5", {"grids": "llava"}, "protocol.grids: llava-1.5 has one view and no tiles"),
        ("llava-next", {"image_aspect": "pad"}, "protocol.image_aspect: llava-next reads images of any shape"),
        ("llava-next-mistral", {"prompt": "vicuna_v1"}, "vicuna_v1 is the conversation of LLaVA on Vicuna"),
        ("qwen2.5-vl", {"min_pixels": 9, "max_pixels": 8}, "min_pixels 9 is more than max_pixels 8"),
        ("llava-1.5", "publised", "Input should be 'lmms-eval', 'llava' or 'published', got 'publised'"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(backbone: str, protocol: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(backbone, protocol)


def test_one_pixel_bound_moves_the_others_default_where_they_would_cross() -> None:
    for given, bounds in (
        ({"max_pixels": 100_352}, (100_352, 100_352)),
        ({"max_pixels": 1_003_520}, (200_704, 1_003_520)),
        ({"min_pixels": 2_000_000}, (2_000_000, 2_000_000)),
        ({"min_pixels": 3136}, (3136, 1_605_632)),
    ):
        (cell,) = cells_of("qwen2.5-vl", given)
        assert (cell.protocol.min_pixels, cell.protocol.max_pixels) == bounds


def test_backbones_of_a_list_come_one_after_the_other_each_with_its_own_protocol_and_scorer() -> None:
    scorer = {"name": "diffprune", "params": {"checkpoint": "scorers/{backbone}"}}
    entries = {"methods": ["none", scorer], "budgets": {"prune_rate": [0.5]}}
    grid = cells_of(["qwen2.5-vl-3b", {"name": "llava-next", "revision": "abc"}], "published", **entries)
    assert [(cell.backbone, cell.method) for cell in grid] == [
        ("qwen2.5-vl-3b", "none"),
        ("qwen2.5-vl-3b", "diffprune"),
        ("llava-next", "none"),
        ("llava-next", "diffprune"),
    ]
    assert [cell.params.get("checkpoint") for cell in grid][1::2] == ["scorers/qwen2.5-vl-3b", "scorers/llava-next"]
    assert [cell.protocol.dtype for cell in grid[::2]] == ["bfloat16", "float16"]
    assert grid[2].entry.revision == "abc"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["llava-1.5", "llava-1.5"], "llava-1.5 is listed twice"),
        (["llava-1.5", "lava"], "there is no backbone 'lava'"),
        (["llava-1.5", "toy-llava"], "no table of the paper measures toy-llava"),
        ([], "backbone: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_list_of_backbones_is_one_sentence(listed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(listed, "published")


def test_a_method_may_have_seeds_of_its_own() -> None:
    methods = ["none", "grid", {"name": "random", "seeds": [0, 1, 2]}]
    grid = cells_of("toy-llava", {}, methods=methods, budgets={"keep": [16]})
    seeds = {name: [cell.seed for cell in grid if cell.method == name] for name in ("none", "grid", "random")}
    assert seeds == {"none": [0], "grid": [0], "random": [0, 1, 2]}
