"""The measured bars of toy-llava: its scores, the best blind scores, what random pruning retains, CLS attention.

`dpbench toy bars` prints the table of `dpbench/toy/README.md`.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from dpbench import tasks
from dpbench.backbones.base import Backbone
from dpbench.errors import ConfigError
from dpbench.report import retention, runs
from dpbench.tasks import aggregators
from dpbench.tasks.data.root import data_files
from dpbench.toy.scenes import COLOURS, Scene, draw, random_scene

GREY = 128


@dataclass(frozen=True, slots=True)
class Bars:
    """The measured bars.

    Attributes:
        scores: unpruned score by task, 0-100.
        chance: the best blind score by task, 0-100.
        retained: random's retention in percent, by budget.
        cls_share: share of the CLS row on patches with object pixels, mean over scenes.
        cls_area: share of patches with object pixels, mean over scenes.
    """

    scores: dict[str, float]
    chance: dict[str, float]
    retained: dict[int, float]
    cls_share: float
    cls_area: float


def chance(name: str, data_root: Path) -> float:
    """Return the best score, 0-100, that is possible without the image.

    A guesser answers the same text the same way every time, so at best it is right on the most frequent answer. MMBench
    counts a question only if all four rotations are right: a guesser that picks the same content in all of them is
    right once in four. In MME it gets both questions right on one image of two and none on the other: half the maximum.
    In POPE, where each question is asked as often with a yes as with a no, always saying yes has the highest F1.
    """
    if tasks.find(name).group:
        return tasks.find(name).chance
    if tasks.find(name).metric == aggregators.F1:
        return _always_yes(name, data_root)
    questions: dict[str, Counter[str]] = {}
    for path in data_files(name, data_root):
        for row in pq.read_table(path).drop_columns(["image"] if name != "gqa" else []).to_pylist():
            if row.get("data_type", "image") == "image":
                questions.setdefault(_prompt_of(row), Counter())[_answer_of(row)] += 1
    best = sum(max(answers.values()) for answers in questions.values())
    return 100 * best / sum(map(Counter.total, questions.values()))


def _always_yes(name: str, data_root: Path) -> float:
    tables = [pq.read_table(path, columns=["answer", "category"]) for path in data_files(name, data_root)]
    rows = pa.concat_tables(tables).rename_columns(["ground_truth", "category"]).to_pylist()
    return 100 * aggregators.pope([{"prediction": "yes", **row} for row in rows])[aggregators.F1]


def _prompt_of(row: dict[str, object]) -> str:
    options = [str(row[name]) for name in ("choices", "choice_a", "choice_b", "choice_c", "choice_d") if name in row]
    return "\n".join([str(row["question"]), *options, str(row.get("hint", ""))])


def _answer_of(row: dict[str, object]) -> str:
    answers = row.get("answers")
    if isinstance(answers, list):
        words = [str(entry["answer"] if isinstance(entry, dict) else entry) for entry in answers]
        return max(words, key=words.count)
    return str(row["answer"])


def grey_data(source: Path, out: Path) -> Path:
    """Copy a toy data root with every image replaced by plain grey, and return the copy."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), (GREY, GREY, GREY)).save(buffer, "PNG")
    grey = {"bytes": buffer.getvalue(), "path": None}
    for path in source.rglob("*.parquet"):
        table = pq.read_table(path)
        if "image" in table.column_names:
            field = table.schema.field("image")
            images = [[grey] * len(v) if isinstance(v, list) else grey for v in table["image"].to_pylist()]
            column = pa.array(images, type=field.type)
            table = table.set_column(table.schema.get_field_index("image"), field, column)
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)
    return out


def object_patches(scene: Scene, seed: int) -> NDArray[np.bool_]:
    """Return which of the 12x12 patches hold pixels of an object, (144,); the scene is drawn with this seed."""
    image = draw([scene], np.random.default_rng(seed))[0].astype(int)
    colours = [np.array(COLOURS[item.colour]) for item in scene]
    hit = np.stack([np.abs(image - colour).max(-1) <= 6 for colour in colours]).any(0)
    patches: NDArray[np.bool_] = hit.reshape(12, 8, 12, 8).any((1, 3)).ravel()
    return patches


def cls_attention_share(backbone: Backbone, num_scenes: int = 200, seed: int = 0) -> tuple[float, float]:
    """Return the share of CLS attention on object patches, and their share of all patches, means over scenes."""
    rng = np.random.default_rng(seed)
    shares, areas = [], []
    for number in range(num_scenes):
        scene = random_scene(rng)
        image = Image.fromarray(draw([scene], np.random.default_rng(number))[0])
        (features,) = backbone.encode(backbone.prompt([image], "").pixels, frozenset({"cls_attention"}))
        row = next(iter(features.cls_attention.values())).mean(0)
        on = torch.from_numpy(object_patches(scene, number)).to(row.device)
        shares.append(float(row[on].sum() / row.sum()))
        areas.append(float(on.float().mean()))
    return mean(shares), mean(areas)


def bars(run: Path, data_root: Path, backbone: Backbone) -> Bars:
    """Compute the bars from a finished run of every toy question under `none` and `random`, and measure the rest.

    Raises:
        ConfigError: the run has no records of the unpruned model.
    """
    comparison = next(iter(runs.comparisons([runs.load(run)])), None)
    none = comparison.find("none") if comparison else None
    if comparison is None or none is None:
        raise ConfigError(f"{run} has no records of method none; make them with: dpbench run toy-full")
    scores = runs.scores_of(comparison.rows[none])
    random = {k.budget.keep: value for k, value in retention.averages(comparison).items() if k.method == "random"}
    retained = {keep: random[keep] for keep in sorted(keep for keep in random if keep is not None)}
    share, area = cls_attention_share(backbone)
    return Bars(scores, {name: chance(name, data_root) for name in scores}, retained, share, area)


def render(measured: Bars) -> str:
    """Return the bars as Markdown."""
    rows = [[tasks.TASKS[n].title, s, measured.chance[n], s - measured.chance[n]] for n, s in measured.scores.items()]
    rows.append(["mean", mean(measured.scores.values()), mean(measured.chance.values()), None])
    table = tabulate(rows, ["task", "unpruned", "chance", "above"], "github", floatfmt=".1f", missingval="")
    kept = ", ".join(f"{value:.1f} % at {keep}" for keep, value in measured.retained.items())
    return (
        f"{table}\n\nRandom retains {kept}.\n"
        f"CLS attention on object patches: {measured.cls_share:.2f} of the row on {measured.cls_area:.2f} of the "
        f"patches, {measured.cls_share / measured.cls_area:.1f} times their area."
    )
