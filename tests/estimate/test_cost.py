"""What answers cost, against committed profiles: FLOPs to a millionth, memory within a quarter."""

from statistics import mean

import pytest
from places import RESULTS

from dpbench.estimate import cost
from dpbench.estimate.shapes import Shapes, load_shapes
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.storage.record import Profile, read

PROFILES = [
    profile
    for name in ("profile-nvidia-h200", "profile-nvidia-h200-methods")
    for profile in read(RESULTS / name / "profile.jsonl", Profile)
    if profile.configuration == "eager"
]
ONE_TO_ONE = [
    profile for profile in PROFILES if profile.method in ("none", "diffprune", "holov") and profile.num_text == 66
]
"""Profiles of methods that read exactly their budget, with the text of an estimate and no newlines."""


ROTATIONS = 1e-6
"""The share of a prefill that torch counts for the angles of RoPE, which the formula leaves out."""


def shapes_and_cell(backbone: str, method: str, budget: str) -> tuple[Shapes, Cell]:
    part = manifest(backbone, method, budget)
    return load_shapes(part), next(cells(part))


def manifest(backbone: str, method: str, budget: str) -> Manifest:
    data = {"name": "one", "backbone": backbone, "methods": [method], "tasks": ["pope"]}
    if budget.endswith("%"):
        data["budgets"] = {"prune_rate": [float(budget.strip("-%")) / 100]}
    elif budget != "all":
        data["budgets"] = {"keep": [int(budget)]}
    return make_manifest(data, source="test")


@pytest.mark.parametrize("profile", ONE_TO_ONE, ids=lambda one: f"{one.backbone} {one.method} {one.budget}")
def test_flops_of_a_prompt_are_those_that_a_profile_counted(profile: Profile) -> None:
    shapes, cell = shapes_and_cell(profile.backbone, profile.method, profile.budget)
    found = cost.cell_cost(shapes, cell)
    assert found.image + found.question == pytest.approx(profile.stages_flops["prefill"], rel=ROTATIONS)
    assert cost.image_flops(shapes) == pytest.approx(profile.stages_flops["encode"], rel=ROTATIONS)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_cuts_inside_the_llm_share_nothing_and_cost_what_their_layers_read(method: str) -> None:
    profile = next(one for one in PROFILES if (one.backbone, one.method, one.budget) == ("llava-1.5", method, "128"))
    shapes, cell = shapes_and_cell("llava-1.5", method, "128")
    found = cost.cell_cost(shapes, cell)
    assert found.image == 0
    assert found.question == pytest.approx(profile.stages_flops["prefill"], rel=ROTATIONS)


def test_a_question_after_the_first_about_an_image_costs_its_text_alone() -> None:
    shapes, cell = shapes_and_cell("llava-1.5", "holov", "64")
    found = cost.cell_cost(shapes, cell)
    assert found.image > 0.9 * found.question  # 64 visual and 66 text tokens
    _, unpruned = shapes_and_cell("llava-1.5", "none", "all")
    whole = cost.cell_cost(shapes, unpruned)
    assert whole.image > 8 * whole.question  # 576 and 66


def test_a_method_that_draws_or_reads_the_question_shares_nothing() -> None:
    own = {"random": True, "prunesid": True, "cdpruner": True, "grid": False, "holov": False, "none": False}
    assert {name: cost.keeps_own_rows(name) for name in own} == own
    assert cost.cell_cost(*shapes_and_cell("llava-1.5", "random", "64")).image == 0


def test_a_resized_image_costs_the_tower_at_its_own_size() -> None:
    shapes, cell = shapes_and_cell("llava-1.5", "downsample", "144")
    resized = cost.cell_cost(shapes, cell).resized_image
    assert resized is not None
    assert resized < cost.image_flops(shapes) / 3  # a quarter of the patches


def test_a_budget_out_of_reach_is_a_refusal() -> None:
    shapes, cell = shapes_and_cell("llava-1.5", "dart", "8")
    assert "cannot reach a mean of 8" in str(cost.try_cell_cost(shapes, cell))


@pytest.mark.parametrize("backbone", ["llava-1.5", "llava-next", "qwen2.5-vl"])
def test_memory_of_a_prompt_is_near_the_peak_of_a_profile(backbone: str) -> None:
    profile = next(one for one in PROFILES if (one.backbone, one.method) == (backbone, "none"))
    shapes, _ = shapes_and_cell(backbone, "none", "all")
    before = min(profile.peak_bytes.values())
    measured = profile.peak_bytes["prefill"] - before  # what the prefill adds
    assert cost.prompt_bytes(shapes, "float16", 0) == pytest.approx(measured, rel=0.25)
    assert cost.prompt_bytes(shapes, "float16", 0) > sum(profile.kv_bytes_per_layer) * 0.95
    assert mean(profile.visual_tokens_per_layer) == shapes.num_visual
