"""The hard subset: chosen by finished cells, scored by whole pairs and circles, answered once."""

from pathlib import Path
from typing import Any

import pytest
from places import TOY_DATA
from rich.console import Console

from dpbench import prefix, record, runner
from dpbench.errors import ConfigError
from dpbench.journal import Journal
from dpbench.manifest import Manifest, cells
from dpbench.manifest_file import make_manifest
from dpbench.record import Record
from dpbench.tasks import aggregators

QUIET = Console(quiet=True)
TASKS = ["gqa", "mme", "mmbench_en"]


def manifest(methods: list[str], **protocol: Any) -> Manifest:
    return make_manifest(
        {
            "name": "trial",
            "backbone": "toy-llava",
            "methods": methods,
            "budgets": {"keep": [9]},
            "tasks": TASKS,
            "protocol": {"limit": 12, **protocol},
        },
        source="test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    full = ["none", "downsample", "grid"]
    runner.run(manifest(full), out, TOY_DATA, device="cpu", console=QUIET)
    return out / "trial"


def answers(folder: Path, method: str, task: str, subset: str | None = None) -> dict[int, Any]:
    cell_id = next(
        each.cell_id
        for each in record.read(folder / "records.jsonl", Record)
        if (each.cell["method"], each.cell["task"], each.cell["subset"]) == (method, task, subset)
    )
    return {each.doc_id: each for each in Journal(folder / "samples" / f"{cell_id}.jsonl").answers.values()}


def right(answers: dict[int, Any], task: str, together: list[int]) -> bool:
    """Tell whether every one of these questions is right, read from lmms-eval's own fields."""
    read = {"gqa": lambda s: s["exact_match"], "mme": lambda s: s["mme_total_score"]["score"]}
    read["mmbench_en"] = lambda s: s["gpt_eval_score"]["hit"]
    return all(read[task](answers[doc_id].scores) for doc_id in together)


GROUPS = {"gqa": [[n] for n in range(12)], "mme": [[n, n + 1] for n in range(0, 12, 2)]}


def test_hard_is_what_downsample_gets_wrong_and_none_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[int] = []
    real = prefix.generate

    def generate(backbone: Any, method: Any, spliced: Any, *rest: Any, **options: Any) -> Any:
        answered.append(len(spliced))
        return real(backbone, method, spliced, *rest, **options)

    monkeypatch.setattr(prefix, "generate", generate)
    wanted = manifest(["none", "downsample", "grid", "pool"], subset="hard")
    outcome = runner.run(wanted, folder.parent, TOY_DATA, device="cpu", console=QUIET)
    assert {each.cell["method"] for each in outcome.added} == {"grid", "pool"}
    for task, groups in GROUPS.items():
        none, easy = answers(folder, "none", task), answers(folder, "downsample", task)
        hard = {n for each in groups if right(none, task, each) and not right(easy, task, each) for n in each}
        assert hard
        for method in ("grid", "pool"):
            assert set(answers(folder, method, task, "hard")) == hard
    pool = [each for each in outcome.added if each.cell["method"] == "pool"]
    assert sum(answered) == sum(each.num_samples for each in pool), "grid's answers were there already"
    for each in outcome.added:
        known = answers(folder, each.cell["method"], each.cell["task"], "hard").values()
        sums = aggregators.sums(each.cell["task"], [a.scores for a in known], [a.image_group for a in known])
        assert each.score == pytest.approx(aggregators.score(sums)[0])
        assert each.num_samples == len(known)


def test_the_subset_is_part_of_a_cells_identity() -> None:
    plain, hard = (next(cells(manifest(["grid"], subset=subset))) for subset in (None, "hard"))
    assert plain.id != hard.id
    assert hard.label == "grid @ 9 on gqa, hard subset"


def test_without_the_cells_it_is_chosen_by_the_sentence_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="first run the same manifest, with none and downsample among its methods"):
        runner.run(manifest(["grid"], subset="hard"), tmp_path, TOY_DATA, device="cpu", console=QUIET)


def test_the_methods_it_is_chosen_by_have_no_cells_of_it() -> None:
    with pytest.raises(ConfigError, match="name another method to run"):
        manifest(["none", "downsample"], subset="hard")
