"""Rates are those of the committed files, and hours follow from them by hand."""

from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from statistics import mean, median

import pytest
import yaml
from places import RESULTS

from dpbench.estimate import cost
from dpbench.estimate.rates import Rate, committed_rate, estimate_seconds, on_papers_gpu
from dpbench.estimate.shapes import load_shapes
from dpbench.estimate.workload import load_tasks
from dpbench.manifest.reading import make_manifest
from dpbench.manifest.schema import BackboneEntry, Manifest
from dpbench.storage.record import Profile, Record, read

LISTED = yaml.safe_load((files("dpbench.estimate") / "rates.yaml").read_text(encoding="utf-8"))


def entry(name: str) -> BackboneEntry:
    return BackboneEntry(name=name)


@pytest.mark.parametrize("listed", LISTED["profiles"], ids=lambda one: one["backbone"])
def test_a_listed_rate_is_the_median_of_its_profile(listed: dict) -> None:
    rows = [
        one
        for one in read(RESULTS.parent / listed["source"] / "profile.jsonl", Profile)
        if (one.backbone, one.configuration, one.batch_size) == (listed["backbone"], "eager", 1)
    ]
    unpruned = next(one for one in rows if one.method == "none")
    assert listed["device"] == unpruned.environment["gpu"]
    assert listed["dtype"] == unpruned.environment["dtype"]
    assert listed["image_flops"] == unpruned.stages_flops["encode"]
    assert listed["prefill_flops"] == unpruned.stages_flops["prefill"]
    stages = {"image_ms": "encode", "prefill_ms": "prefill", "splice_ms": "splice", "decode_ms": "decode"}
    for key, stage in stages.items():
        assert listed[key] == pytest.approx(median(unpruned.stages_ms[stage]), rel=1e-3)
    reduce_ms = defaultdict(list)
    for row in rows:
        reduce_ms[row.method].append(median(row.stages_ms["reduce"]))
    del reduce_ms["none"]
    assert listed["reduce_ms"] == pytest.approx({name: mean(values) for name, values in reduce_ms.items()}, rel=1e-3)


def test_the_toys_rate_is_that_of_its_full_run() -> None:
    (listed,) = LISTED["runs"]
    records = read(RESULTS.parent / listed["source"] / "records.jsonl", Record)
    whole = 1000 * sum(one.wall_s for one in records) / sum(one.num_samples for one in records)
    assert set(listed["answer_ms"]) == {one.cell["method"] for one in records}
    assert mean(listed["answer_ms"].values()) == pytest.approx(whole, rel=0.5)  # a run again on another machine


def small(method: str, keep: int) -> Manifest:
    data = {"name": "small", "backbone": "llava-1.5", "methods": [method], "tasks": ["pope"]}
    return make_manifest({**data, "budgets": {"keep": [keep]}}, source="test")


def test_seconds_are_images_once_prompts_and_steps(tmp_path: Path) -> None:
    """POPE: 9,000 questions about 500 images, answers of 16 tokens at most, batches of 32."""
    part = small("holov", 64)
    shapes, loads = load_shapes(part), load_tasks(part, tmp_path)
    one = cost.cell_cost(shapes, loads[0].cells[0])
    image_s, prefill_s = 500 * cost.image_flops(shapes) / 1e12, (9000 * one.question + (500 + 281) * one.image) / 2e12
    rate = Rate(
        device="made up", source="", image_flops_per_s=1e12, prefill_flops_per_s=2e12, splice_ms=1, decode_ms=20,
        reduce_ms={"holov": 3},
    )  # fmt: skip
    found = estimate_seconds(rate, shapes, loads, 32)
    step_s = 282 * 0.020  # 9,000 / 32, rounded up
    assert found.least == pytest.approx(image_s + prefill_s + 9000 * 0.004 + step_s)
    assert found.most == pytest.approx(image_s + prefill_s + 9000 * 0.004 + 16 * step_s)


def test_a_cell_that_is_refused_takes_no_time(tmp_path: Path) -> None:
    part = small("dart", 8)
    rate = Rate(device="", source="", image_flops_per_s=float("inf"), prefill_flops_per_s=1.0)
    assert estimate_seconds(rate, load_shapes(part), load_tasks(part, tmp_path), 32).most == 0


def test_a_rate_names_what_it_was_scaled_from() -> None:
    own, larger = committed_rate(entry("llava-1.5")), committed_rate(entry("llava-1.5-13b"))
    assert "scaled by FLOPs from results/profile-nvidia-h200-methods (llava-1.5, float16" in larger.source
    assert larger.prefill_flops_per_s == own.prefill_flops_per_s
    assert larger.decode_ms == pytest.approx(own.decode_ms * 13.4 / 7.1)
    assert "qwen2.5-vl, bfloat16" in committed_rate(entry("qwen2.5-vl-32b")).source
    assert "results/toy-full" in committed_rate(entry("toy-llava")).source


def test_the_papers_gpu_is_as_slow_as_its_table_4_says() -> None:
    rate = committed_rate(entry("llava-1.5"))
    theirs = on_papers_gpu(rate)
    assert theirs.device == "NVIDIA RTX A6000"
    assert LISTED["profiles"][0]["prefill_flops"] / theirs.prefill_flops_per_s == pytest.approx(0.11866)
    assert LISTED["profiles"][0]["image_flops"] / theirs.image_flops_per_s == pytest.approx(0.02971)
    assert theirs.reduce_ms == rate.reduce_ms
