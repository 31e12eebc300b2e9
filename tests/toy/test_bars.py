"""The embedded backbone as shipped: what it scores, and that it scores nothing with its eyes shut."""

from pathlib import Path
from statistics import mean

import pytest
from places import RESULTS, TOY_DATA, TOY_WEIGHTS
from rich.console import Console

from dpbench import backbones, tasks
from dpbench.evaluation import runner
from dpbench.storage import record
from dpbench.storage.record import Record
from dpbench.toy import bars

QUIET = Console(quiet=True)
MEAN, ABOVE_CHANCE = 75, 15


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return scores(TOY_DATA, tmp_path_factory.mktemp("seen"))


def scores(data_root: Path, out: Path) -> dict[str, float]:
    outcome = runner.run(bars.unpruned("bars"), out, data_root, device="cpu", console=QUIET)
    return {each.cell["task"]: each.score for each in outcome.added}


def test_grey_images_score_at_most_five_points_above_chance(tmp_path: Path) -> None:
    blind = scores(bars.grey_data(TOY_DATA, tmp_path / "grey"), tmp_path)
    for name in tasks.TASKS:
        assert blind[name] <= bars.chance(name, TOY_DATA) + 5, (name, blind)


def recorded() -> dict[str, float]:
    """Return what results/toy-full says the shipped weights score unpruned."""
    records = record.newest(record.read(RESULTS / "toy-full" / "records.jsonl", Record))
    return {each.cell["task"]: each.score for each in records if each.cell["method"] == "none"}


def test_unpruned_scores_are_those_that_were_recorded(seen: dict[str, float]) -> None:
    wanted = recorded()
    assert set(seen) == set(wanted) == set(tasks.TASKS)
    for name, score in seen.items():
        assert score == pytest.approx(wanted[name], abs=3), (name, seen)


def test_the_embedded_backbone_meets_its_bars(seen: dict[str, float]) -> None:
    """Unpruned, over the ten on average and each of them above the best score without looking."""
    assert mean(seen.values()) >= MEAN
    above = {name: score - bars.chance(name, TOY_DATA) for name, score in seen.items()}
    assert min(above.values()) >= ABOVE_CHANCE, above


def test_cls_attention_rests_on_objects() -> None:
    share, area = bars.cls_attention_share(backbones.load("toy-llava", weights=str(TOY_WEIGHTS)), num_scenes=50)
    assert share >= 2 * area
