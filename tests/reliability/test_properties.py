"""Manifests and reductions of every shape: they are accepted for what they say, or refused with a sentence."""

from datetime import date
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpbench import backbones, registry, tasks
from dpbench.budget import BudgetRequest
from dpbench.engine.decision import Rule, image_generator, reduce_image
from dpbench.errors import DpbenchError
from dpbench.manifest.cell import cells
from dpbench.manifest.reading import make_manifest
from dpbench.method import Method, Reduction, VisualTokens
from dpbench.storage import plain_yaml

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIGHT = ("none", "random", "grid", "pool")

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
entries = st.sampled_from(LIGHT) | st.sampled_from(LIGHT).map(lambda name: {"name": name, "params": {}})
budgets = st.fixed_dictionaries(
    {"keep": st.lists(st.integers(1, 144), min_size=1, max_size=3)}
) | st.fixed_dictionaries({"prune_rate": st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3)})
protocols = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
        "batch_size": st.just("auto") | st.integers(1, 512),
        "limit": st.none() | st.integers(1, 10_000),
        "seeds": st.lists(st.integers(0, 2**31), min_size=1, max_size=2),
        "ocr": st.booleans(),
    },
)
good = st.fixed_dictionaries(
    {
        "name": names,
        "backbone": st.sampled_from(["toy-llava", {"name": "toy-llava"}]),
        "methods": st.lists(entries, min_size=1, max_size=3),
        "budgets": budgets,
        "tasks": st.lists(st.sampled_from(list(tasks.TASKS)), min_size=1, max_size=3),
        "protocol": protocols,
    }
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part))


@QUICK
@given(good)
def test_a_good_manifest_expands_to_the_cells_it_says(data: dict[str, Any]) -> None:
    found = list(cells(make_manifest(data, source="test")))
    size = len(next(iter(data["budgets"].values())))
    methods = [each if isinstance(each, str) else each["name"] for each in data["methods"]]
    rows = sum(1 if name == "none" else size for name in methods)
    assert len(found) == rows * len(data["tasks"]) * len(set(data["protocol"].get("seeds", [0])))
    assert all(
        ("keep" in data["budgets"] and cell.method != "none") == (cell.budget.keep is not None) for cell in found
    )


@QUICK
@given(good)
def test_a_manifest_survives_being_written_and_read(data: dict[str, Any]) -> None:
    first = make_manifest(data, source="test")
    text = plain_yaml.dump(first.model_dump(mode="json"))
    again, _ = plain_yaml.load(text)
    assert make_manifest(again, source="test") == first
    assert [each.id for each in cells(make_manifest(again, source="test"))] == [each.id for each in cells(first)]


@QUICK
@given(good, st.sampled_from(["name", "backbone", "methods", "budgets", "tasks", "protocol", "other"]), anything)
def test_any_value_in_any_place_is_taken_or_refused_in_one_sentence(data: dict[str, Any], key: str, value: Any) -> None:
    refusal, expanded = "", []
    try:
        expanded = list(cells(make_manifest({**data, key: value}, source="test")))
    except DpbenchError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 700
    assert refusal or key != "other"
    assert all(each.backbone in backbones.FAMILIES and each.task in tasks.ALL for each in expanded)


@QUICK
@given(st.text("aZ0._-/\\~\0\n ", max_size=6) | st.text(max_size=30))
def test_a_run_name_cannot_lead_out_of_its_folder(name: str) -> None:
    data = {"name": name, "backbone": "toy-llava", "methods": ["none"]}
    try:
        accepted = make_manifest(data, source="test").name
    except DpbenchError:
        return
    assert accepted == name
    assert not {"/", "\\", "\0", "\n"} & set(name)
    assert not name.startswith(".")


@QUICK
@given(st.text(max_size=60))
def test_yaml_is_plain_data_or_refused(text: str) -> None:
    try:
        data, _ = plain_yaml.load(text)
    except plain_yaml.YamlError:
        return
    assert data is None or isinstance(data, str | int | float | list | dict | set | bytes | date)


@QUICK
@given(st.text(max_size=20), st.text(max_size=40))
def test_a_parameter_is_read_or_refused(name: str, value: str) -> None:
    refusal, found = "", {}
    try:
        found = registry.parse_params([f"{name}={value}"])
    except DpbenchError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert bool(refusal) != (len(found) == 1)


class Fixed(Method):
    """Returns what it was told to."""

    def __init__(self, reduction: Reduction) -> None:
        object.__setattr__(self, "reduction", reduction)

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        reduction: Reduction = self.reduction  # type: ignore[attr-defined]
        return reduction


indices = st.lists(st.integers(0, 11), unique=True, max_size=12) | st.lists(st.integers(-3, 14), max_size=16)
kinds = st.just(torch.int64) | st.sampled_from([torch.int32, torch.float32, torch.bool])
shapes = st.none() | st.sampled_from([(0, 4), (1, 4), (3, 4), (3, 5), (3,), (2, 2, 2)])


def tensor(shape: tuple[int, ...] | None, value: float) -> Tensor | None:
    return None if shape is None else torch.full(shape, value)


@QUICK
@given(
    indices,
    kinds,
    shapes,
    st.sampled_from([0.0, float("nan"), float("inf")]),
    st.sampled_from([None, (12,), (5,), (12, 2)]),
)
def test_a_reduction_is_sound_or_refused(
    chosen: list[int], dtype: torch.dtype, shape: tuple[int, ...] | None, value: float, scores: tuple[int, ...] | None
) -> None:
    """What the harness lets through has tokens of the image, each once, rows that fit them, and no NaN score."""
    visual = VisualTokens(
        embeds_ND=torch.zeros(12, 4),
        hidden_NC=torch.zeros(12, 6),
        view_N=torch.zeros(12, dtype=torch.int64),
        row_N=torch.arange(12) // 4,
        col_N=torch.arange(12) % 4,
        slot_N=torch.arange(12),
        read_N=torch.ones(12, dtype=torch.bool),
        cls_attention={},
        generator=image_generator(0, "test", 0),
    )
    given_reduction = Reduction(torch.tensor(chosen).to(dtype), tensor(shape, value), scores_N=tensor(scores, value))
    try:
        found = reduce_image(Fixed(given_reduction), visual, Rule(BudgetRequest(keep=16)), num_read=12, max_views=1)
    except (DpbenchError, ValueError):
        return
    rows = found.indices_K
    single = rows[rows >= 0]
    assert rows.dtype == torch.int64
    assert bool(((rows >= -1) & (rows < 12)).all())
    assert len(single.unique()) == len(single)
    if found.embeds_KD is not None:
        assert found.embeds_KD.shape == (len(rows), 4)
    if found.scores_N is not None:
        assert found.scores_N.shape == (12,)
        assert not bool(found.scores_N.isnan().any())
