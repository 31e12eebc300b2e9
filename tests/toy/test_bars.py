"""The embedded backbone as shipped: what it scores, and that it scores nothing without seeing the image."""

from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
import pytest
from places import RESULTS, TOY_DATA, TOY_WEIGHTS
from rich.console import Console

from dpbench import backbones, tasks
from dpbench.evaluation import runner
from dpbench.manifest.reading import make_manifest
from dpbench.storage import contributions, record
from dpbench.storage.contributions import Contribution
from dpbench.storage.journal import Journal
from dpbench.storage.record import Record
from dpbench.toy import bars

QUIET = Console(quiet=True)
MEAN, ABOVE_CHANCE = 75, 15


def answer(data_root: Path, out: Path, limit: int | None = None) -> dict[str, Record]:
    """Answer the toy questions unpruned and return the records by task."""
    settings = {"backbone": "toy-llava", "methods": ["none"], "protocol": {"limit": limit} if limit else {}}
    manifest = make_manifest({"name": "bars", **settings}, source="test")
    return {
        added.cell["task"]: added for added in runner.run(manifest, out, data_root, device="cpu", console=QUIET).added
    }


def cut_data(source: Path, out: Path, num_rows: int) -> Path:
    """Copy the first questions of every benchmark, and all of GQA's images."""
    for path in source.rglob("*.parquet"):
        table = pq.read_table(path)
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table if "images" in str(path) else table.slice(0, num_rows), target)
    return out


def assert_blind(data_root: Path, tmp_path: Path) -> None:
    """Fail if any task scores above chance on grey images; chance is computed for the same questions."""
    blind = answer(bars.grey_data(data_root, tmp_path / "grey"), tmp_path)
    assert set(blind) == set(tasks.TASKS)
    for name, added in blind.items():
        assert added.score <= bars.chance(name, data_root) + 5, (name, blind)


def test_grey_images_score_at_most_five_points_above_chance(tmp_path: Path) -> None:
    assert_blind(cut_data(TOY_DATA, tmp_path / "cut", 32), tmp_path)


@pytest.mark.slow
def test_grey_images_score_at_most_five_points_above_chance_on_all_questions(tmp_path: Path) -> None:
    assert_blind(TOY_DATA, tmp_path)


def recorded() -> dict[str, Record]:
    """Return what results/toy-full says the shipped weights score unpruned."""
    records = record.newest(record.read(RESULTS / "toy-full" / "records.jsonl", Record))
    return {stored.cell["task"]: stored for stored in records if stored.cell["method"] == "none"}


def right_units(contribution: Contribution) -> dict[int, bool]:
    """Return whether each unit of a benchmark was answered right, by its first sample."""
    return dict(zip(contribution.layout.unit_U.tolist(), contribution.right_U().tolist(), strict=True))


def test_unpruned_answers_are_right_where_the_recorded_ones_are(tmp_path: Path) -> None:
    stored = contributions.load(RESULTS / "toy-full", recorded().values(), journals=False)
    same = []
    for name, added in answer(TOY_DATA, tmp_path, limit=16).items():
        answers = Journal(tmp_path / "bars" / "samples" / f"{added.cell_id}.jsonl").answers.values()
        recorded_units = right_units(stored[recorded()[name].cell_id])
        same += [
            recorded_units[first] == right
            for first, right in right_units(contributions.from_answers(name, list(answers))).items()
        ]
    assert len(same) >= 10 * 4
    assert mean(same) >= 0.97


@pytest.mark.slow
def test_unpruned_scores_are_those_that_were_recorded(tmp_path: Path) -> None:
    scores = answer(TOY_DATA, tmp_path)
    assert set(scores) == set(recorded()) == set(tasks.TASKS)
    for name, stored in recorded().items():
        assert scores[name].score == pytest.approx(stored.score, abs=3), name


def test_the_recorded_scores_meet_the_bars() -> None:
    """Unpruned, over the ten on average and each of them above the best score without looking."""
    scores = {name: stored.score for name, stored in recorded().items()}
    assert set(scores) == set(tasks.TASKS)
    assert mean(scores.values()) >= MEAN
    above = {name: score - bars.chance(name, TOY_DATA) for name, score in scores.items()}
    assert min(above.values()) >= ABOVE_CHANCE, above


def test_cls_attention_rests_on_objects() -> None:
    share, area = bars.cls_attention_share(backbones.load("toy-llava", weights=str(TOY_WEIGHTS)), num_scenes=50)
    assert share >= 2 * area
