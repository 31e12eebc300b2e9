"""A profile of the embedded backbone: rows in order with all measurements; methods that cannot run are reported."""

import math
from pathlib import Path

import pytest
import torch

from dpbench.backbones import miniatures
from dpbench.errors import ConfigError, DpbenchError
from dpbench.manifest.reading import make_manifest
from dpbench.measure import roofline
from dpbench.measure.profile import profile_manifest
from dpbench.measure.settings import Settings
from dpbench.storage import record
from dpbench.storage.record import Profile

QUICK = Settings(repetitions=3, seconds=0, warmups=1, image_hw=(336, 336))


def profile(methods: list[str], out: Path, settings: Settings = QUICK, backbone: str = "toy-llava") -> list[Profile]:
    data = {"name": "try", "backbone": backbone, "methods": methods, "budgets": {"keep": [16]}}
    manifest = make_manifest(data, source="test")
    return profile_manifest(manifest, out, settings, device="cpu")


def test_every_row_has_times_flops_and_bytes_by_stage(tmp_path: Path) -> None:
    rows = profile(["none", "cls-attention", "pyramiddrop"], tmp_path)
    assert record.read(tmp_path / "try" / "profile.jsonl", Profile) == rows
    none, cls, cutting = rows
    stages = ["encode", "reduce", "splice", "prefill", "ttft", "preprocess", "decode", "end_to_end"]
    assert list(none.stages_ms) == stages
    assert set(cls.stages_ms) == {*stages, "signals"}
    assert all(len(row.stages_ms["ttft"]) == 3 for row in rows)
    assert [row.num_visual for row in rows[:2]] == [144, 16]
    assert len(set(cutting.visual_tokens_per_layer)) > 1
    assert cutting.num_visual == pytest.approx(16, abs=1)
    assert {row.num_text for row in rows} == {66}
    assert none.stages_flops["ttft"] > 1.9 * cls.stages_flops["ttft"]
    assert sum(none.kv_bytes_per_layer) > sum(cls.kv_bytes_per_layer)
    for row in rows:
        assert set(row.bound_ms) == {"encode", "reduce", "splice", "prefill"}
        assert row.joules == {}, "there is no energy counter on a CPU"
        assert row.environment["cpu_threads"] == torch.get_num_threads()
    assert len({row.started for row in rows}) == 1, "they were timed in turn"


def test_a_method_that_cannot_run_here_is_skipped_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dpbench.measure.profile.load_backbone", lambda manifest, device: miniatures.backbone("qwen2_5_vl")
    )
    rows = profile(["random", "cls-attention"], tmp_path)
    assert [row.method for row in rows] == ["random"]
    assert "skipped: cls-attention" in capsys.readouterr().err
    with pytest.raises(DpbenchError, match="cls-attention"):
        profile(["cls-attention"], tmp_path)


def test_batch_sizes_are_rows_of_their_own(tmp_path: Path) -> None:
    one, two = profile(["random"], tmp_path, Settings(repetitions=1, seconds=0, warmups=1, batch_sizes=(1, 2)))
    assert (one.batch_size, two.batch_size) == (1, 2)
    assert two.stages_flops["encode"] == 2 * one.stages_flops["encode"]
    assert two.kv_bytes_per_layer == tuple(2 * num_bytes for num_bytes in one.kv_bytes_per_layer)


def test_the_bound_is_the_larger_of_flops_and_bytes() -> None:
    rates = {"matmul_flops_per_s": 1e9, "copy_bytes_per_s": 1e6}
    bound = roofline.bounds_ms({"encode": 5_000_000, "reduce": 0}, {"encode": 1000, "reduce": 3000}, rates)
    assert bound == pytest.approx({"encode": 5.0, "reduce": 3.0})


def test_a_prefill_reads_every_decoder_weight_once() -> None:
    model = miniatures.backbone("llava")
    moved = roofline.stage_bytes(model, kept_bytes=10, prompt_bytes=100, cache_bytes=1000)
    head = model.model.lm_head.weight.numel()
    layers = sum(parameter.numel() for parameter in model.decoder.layers.parameters())
    assert moved["prefill"] == 8 * (layers + head) + 1100
    everything = sum(parameter.numel() for parameter in model.core.parameters())
    assert moved["encode"] == 8 * (everything - sum(parameter.numel() for parameter in model.decoder.parameters()))
    assert (moved["reduce"], moved["splice"]) == (20, 200)


def test_rates_are_finite_and_positive() -> None:
    assert all(
        math.isfinite(rate) and rate > 0 for rate in roofline.measure_rates(torch.device("cpu"), torch.float32).values()
    )


def test_cuda_graphs_on_a_cpu_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpbench.measure.profile.load_backbone", lambda *_: pytest.fail("nothing is loaded"))
    graphed = Settings(configurations=("eager", "cuda-graph"))
    with pytest.raises(ConfigError, match="--cuda-graph: a CPU has no CUDA graphs; remove it"):
        profile(["grid"], tmp_path, graphed)
