"""Manifests: expansion, identity, and complaints with line numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpbench.budget import BudgetRequest
from dpbench.errors import ConfigError
from dpbench.manifest import reading
from dpbench.manifest.cell import cells

GOOD = """\
name: trial
backbone: toy-llava
methods: [none, {name: random, params: {positions: original}}]
budgets: {keep: [16, 32]}
tasks: [pope, gqa]
protocol:
  limit: 4
  seeds: [0, 1]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_cells_are_methods_by_budget_by_task_by_seed(tmp_path: Path) -> None:
    grid = list(cells(reading.load_manifest(written(tmp_path, GOOD))))
    assert len(grid) == 2 * 2 * (1 + 2)
    assert {cell.budget.keep for cell in grid if cell.method == "none"} == {None}
    assert {cell.budget.keep for cell in grid if cell.method == "random"} == {16, 32}
    assert len({cell.id for cell in grid}) == len(grid)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("limit: 4", "limt: 4", 7, "unknown key 'limt'; did you mean 'limit'"),
        ("budgets", "budget", 4, "unknown key 'budget'; did you mean 'budgets'"),
        ("limit: 4", "limit: 0", 7, "greater than or equal to 1"),
        ("keep: [16, 32]", "keep: [16], prune_rate: [.5]", 4, "either keep .* or prune_rate"),
        ("keep: [16, 32]", "keep: [16, 0]", 4, "budgets.keep.1: must be at least 1, got 0$"),
        ("keep: [16, 32]", "keep: [-1]", 4, "budgets.keep.0: must be at least 1, got -1$"),
        ("keep: [16, 32]", "keep: [1.5]", 4, "budgets.keep.0: Input should be a valid integer"),
        ("keep: [16, 32]", "prune_rate: [1]", 4, "budgets.prune_rate.0: must be at least 0 and below 1, got 1.0$"),
        ("keep: [16, 32]", "prune_rate: [-.5]", 4, "budgets.prune_rate.0: must be at least 0 and below 1, got -0.5$"),
        ("keep: [16, 32]", "prune_rate: [.nan]", 4, "budgets.prune_rate.0: must be at least 0 and below 1, got nan$"),
        ("limit: 4", "limit: [", None, "not YAML"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, old: str, new: str, line: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        reading.load_manifest(written(tmp_path, GOOD.replace(old, new)))
    assert line is None or f"trial.yaml:{line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: random", "name: randon", "did you mean 'random'"),
        ("toy-llava", "toy-lava", "did you mean 'toy-llava'"),
        ("pope", "popes", "did you mean 'pope'"),
        ("keep: [16, 32]", "keep: [145]", "more than the 144 visual tokens"),
        ("budgets: {keep: [16, 32]}\n", "", "every method but 'none' needs one"),
    ],
)
def test_unknown_names_and_impossible_budgets_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reading.load_manifest(written(tmp_path, GOOD.replace(old, new)))


def test_bad_parameters_fail_before_anything_loads(tmp_path: Path) -> None:
    wrong = reading.load_manifest(written(tmp_path, GOOD.replace("positions: original", "layer: 3")))
    with pytest.raises(ConfigError, match="has no parameter 'layer'"):
        list(cells(wrong))


def test_a_missing_manifest_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        reading.load_manifest(Path("quickstat.yaml"))


def test_every_shipped_manifest_loads() -> None:
    assert {"quickstart", "toy-full"} <= set(reading.shipped())
    for name, path in reading.shipped().items():
        loaded = reading.load_manifest(Path(name))
        assert loaded.name == name
        assert path.read_text(encoding="utf-8").startswith("# ")
        assert list(cells(loaded))


def test_the_cell_id_follows_everything_that_can_change_an_answer(tmp_path: Path) -> None:
    cell = next(cells(reading.load_manifest(written(tmp_path, GOOD))))
    changed = [
        replace(cell, **change)
        for change in (
            {"method": "grid"}, {"params": {"positions": "original"}}, {"budget_kind": "final"}, {"task": "mme"},
            {"budget": BudgetRequest(keep=3)}, {"budget": BudgetRequest(prune_rate=0.5)}, {"seed": 7},
            {"fingerprints": {"source": "1"}}, {"fingerprints": {"source": "2"}},
        )
    ]  # fmt: skip
    changed += [
        replace(cell, protocol=cell.protocol.model_copy(update=update))
        for update in (
            {"prompt": "vicuna_v1"}, {"ocr": True}, {"dtype": "float16"}, {"attention": "eager"},
            {"wording": "llava"}, {"reading": "llava"}, {"image_aspect": "crop"}, {"grids": "llava"},
            {"anyres": "global"}, {"newline": "keep"}, {"limit": 5}, {"min_pixels": 7}, {"max_pixels": 7},
        )
    ]  # fmt: skip
    changed += [
        replace(cell, entry=cell.entry.model_copy(update=update))
        for update in ({"weights": "elsewhere"}, {"revision": "abc"}, {"name": "llava-1.5"}, {"quantize": "4bit"})
    ]
    assert len({cell.id, *(other.id for other in changed)}) == len(changed) + 1


def test_what_cannot_change_an_answer_is_not_part_of_the_cell_id(tmp_path: Path) -> None:
    cell = next(cells(reading.load_manifest(written(tmp_path, GOOD))))
    placed = replace(cell, entry=cell.entry.model_copy(update={"device_map": "auto"}))
    batched = replace(cell, protocol=cell.protocol.model_copy(update={"batch_size": 7, "seeds": [0, 1, 2]}))
    assert placed.id == batched.id == cell.id


def test_a_wrong_name_from_the_command_line_has_its_flag_alone() -> None:
    data = {"name": "try", "backbone": "toy-llava", "methods": ["none"], "tasks": ["pop"]}
    with pytest.raises(ConfigError, match=r"^--tasks: there is no task 'pop'"):
        reading.make_manifest(data, source="the command line")
