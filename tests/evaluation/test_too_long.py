"""Samples whose unpruned prompt does not fit: left out of every row with their group, counted, and never wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import TOY_DATA, TOY_WEIGHTS
from rich.console import Console

from dpbench import tasks
from dpbench.backbones.base import Backbone
from dpbench.engine.context import count_positions
from dpbench.evaluation import merging, outcome, runner
from dpbench.evaluation.sharding import WHOLE, Shard
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import Manifest
from dpbench.report import counted, runs
from dpbench.report.tables import scores
from dpbench.storage import contributions, record
from dpbench.storage.journal import Answer, Journal
from dpbench.storage.record import Record
from dpbench.tasks import aggregators, lmms_eval_adapter, lmms_eval_scores

QUIET = Console(quiet=True)
LIMIT = 24
TASKS = ("gqa", "mme", "mmbench_en")


@pytest.fixture(scope="module")
def lengths(tiny: Backbone) -> dict[str, dict[int, int]]:
    """Return per task how many positions each sample takes, unpruned and with its longest answer."""
    built = [lmms_eval_adapter.build(name, TOY_DATA, limit=LIMIT) for name in TASKS]
    return {
        task.name: {
            request.doc_id: count_positions(tiny.prompt(task.images(request), request.text)) + request.max_new_tokens
            for request in task.requests
        }
        for task in built
    }


@pytest.fixture
def make(tiny_folder: Path, tmp_path: Path) -> Callable[[int, str], Manifest]:
    """Return a maker of manifests whose model has a context of so many positions."""

    def made(context: int, *names: str, weights: Path = tiny_folder) -> Manifest:
        folder = shutil.copytree(weights, tmp_path / f"context {context}")
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = context
        (folder / "config.json").write_text(json.dumps(config))
        return make_manifest(
            {
                "name": "trial",
                "backbone": {"name": "toy-llava", "weights": str(folder)},
                "methods": ["none", "random", "downsample"],
                "budgets": {"keep": [9]},
                "tasks": list(names),
                "protocol": {"limit": LIMIT, "batch_size": 8},
            },
            source="test",
        )

    return made


def run(manifest: Manifest, out: Path, shard: Shard = WHOLE) -> outcome.Outcome:
    return runner.run(manifest, out, TOY_DATA, device="cpu", console=QUIET, shard=shard)


def answers_of(folder: Path, line: Record) -> list[Answer]:
    return list(Journal(folder / "samples" / f"{line.cell_id}.jsonl").answers.values())


def between(lengths: dict[int, int]) -> int:
    """Return a context that a part of the samples does not fit into."""
    return int(np.median(list(lengths.values())))


@pytest.mark.parametrize("task", TASKS)
def test_no_row_is_asked_what_does_not_fit_and_lmms_eval_and_the_aggregators_agree(
    make: Callable[..., Manifest], lengths: dict[str, dict[int, int]], tmp_path: Path, task: str
) -> None:
    context, folder = between(lengths[task]), tmp_path / "results" / "trial"
    ended = run(make(context, task), tmp_path / "results")
    long = {doc_id for doc_id, length in lengths[task].items() if length > context}
    assert ended.is_complete
    assert len(ended.added) == 3
    packed = contributions.load(folder, ended.added, journals=False)
    for line in ended.added:
        answers = answers_of(folder, line)
        assert {each.doc_id for each in answers if each.too_long} == long
        units = {contributions.unit(task, each) for each in answers if each.too_long}
        left_out = sum(contributions.unit(task, each) in units for each in answers)
        assert len(long) <= left_out < len(answers)
        assert (line.num_samples, line.num_too_long, line.num_failed) == (len(answers) - left_out, left_out, 0)
        assert aggregators.score(packed[line.cell_id].sums())[0] == pytest.approx(line.score)
        kept = [each.scores for each in answers if contributions.unit(task, each) not in units]
        for name, value in aggregators.metrics(task, kept).items():
            assert line.metrics[name] == pytest.approx(value), name
    assert len({cell.layout.id for cell in packed.values()}) == 1, "all rows have the same samples"


def test_a_score_of_what_fits_is_the_mean_over_what_fits(
    make: Callable[..., Manifest], lengths: dict[str, dict[int, int]], tmp_path: Path
) -> None:
    context = between(lengths["gqa"])
    ended = run(make(context, "gqa"), tmp_path)
    for line in ended.added:
        right = [
            each.scores["exact_match"]
            for each in answers_of(tmp_path / "trial", line)
            if lengths["gqa"][each.doc_id] <= context
        ]
        assert line.score == pytest.approx(100 * float(np.mean(right)))


def test_a_half_of_an_mme_pair_takes_the_other_half_with_it(
    make: Callable[..., Manifest], lengths: dict[str, dict[int, int]], tmp_path: Path
) -> None:
    pairs_of = list(lengths["mme"].values())  # the two questions of a pair follow one another
    context = next(min(pair) for pair in zip(pairs_of[::2], pairs_of[1::2], strict=True) if len(set(pair)) == 2)
    ended = run(make(context, "mme"), tmp_path)
    (line, *_) = ended.added
    answers = answers_of(tmp_path / "trial", line)
    pairs = [(each.image_group, each.scores["mme_total_score"]["question_id"]) for each in answers]
    long = {pair for pair, each in zip(pairs, answers, strict=True) if each.too_long}
    assert line.num_too_long == sum(pair in long for pair in pairs) == 2 * len(long)
    assert sum(each.too_long for each in answers) < line.num_too_long


def test_a_pruned_row_retains_no_more_because_its_prompts_are_shorter(
    make: Callable[..., Manifest],
    lengths: dict[str, dict[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The toy answers what fits right, so that a row that was asked more than `none` would retain more than 100 %."""
    monkeypatch.setattr(counted, "MIN_UNITS", 1)  # so few samples give no average otherwise
    context = between(lengths["gqa"])
    run(make(context, "gqa", weights=TOY_WEIGHTS), tmp_path)
    (compared,) = runs.comparisons([runs.load(tmp_path / "trial")])
    section = scores.section(compared)
    retained = dict(zip(section.frame["Method"], section.frame[scores.RETENTION], strict=True))
    right = {
        key.method: sum(
            each.scores["exact_match"]
            for each in answers_of(tmp_path / "trial", rows[0])
            if lengths["gqa"][each.doc_id] <= context
        )
        for key, rows in compared.rows.items()
    }
    assert right["none"] > 0
    for method, number in right.items():
        assert retained[method] == pytest.approx(100 * number / right["none"])
    assert max(retained.values()) <= 100
    long = sum(length > context for length in lengths["gqa"].values())
    said = f"{long} of {LIMIT} samples of GQA are too long for the unpruned toy-llava and are left out of every row."
    assert said in section.notes


def test_a_benchmark_of_which_nothing_fits_has_no_score_but_a_reason(
    make: Callable[..., Manifest], lengths: dict[str, dict[int, int]], tmp_path: Path
) -> None:
    context = max(lengths["gqa"].values())
    assert min(lengths["mmbench_en"].values()) > context
    manifest = make(context, "gqa", "mmbench_en")
    ended = run(manifest, tmp_path / "whole")
    assert {line.cell["task"] for line in ended.added} == {"gqa"}
    assert [failed.cell.task for failed in ended.failed] == ["mmbench_en"] * 3
    assert ended.failed[0].reason.startswith(
        "task mmbench_en: no sample fits into the context of toy-llava, for instance: too long: "
    )
    assert ended.failed[0].reason.endswith("remove the task")
    assert not ended.is_complete
    for number in range(2):
        run(manifest, tmp_path / "shards", Shard(number, 2))
    merged = merging.merge(tmp_path / "shards" / "trial", TOY_DATA)
    assert [failed.reason for failed in merged.failed] == [failed.reason for failed in ended.failed]
    assert len(record.read(tmp_path / "shards" / "trial" / "records.jsonl", Record)) == 3


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_lmms_eval_counts_no_sample_that_is_left_out(name: str) -> None:
    """Whatever stands as the answer to a sample that is left out, no metric moves."""
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=LIMIT)
    stop = lmms_eval_adapter.round_up_to_groups(tasks.find(name), built.task, 1) or 1
    assert stop < len(built.requests)
    left_out = {request.doc_id for request in built.requests[:stop]}
    given = {(request.doc_id, request.text): "yes" if request.doc_id % 3 else "A" for request in built.requests}
    other = {key: "B" if key[0] in left_out else answer for key, answer in given.items()}
    first, second = (lmms_eval_scores.score(built, "x", each, left_out) for each in (given, other))
    assert first.metrics == second.metrics
    kept = [built.scores(request, given[request.doc_id, request.text]) for request in built.requests[stop:]]
    for metric, value in aggregators.metrics(name, kept).items():
        assert first.metrics[metric] == pytest.approx(value), metric
