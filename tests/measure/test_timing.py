"""Stage times: warm-ups are not kept, stages run in order, the total is their sum."""

import time

import pytest
import torch

from dpbench.measure.timing import time_stages


def test_stages_are_timed_in_order_and_add_up() -> None:
    seen: list[str] = []

    def stage(name: str, seconds: float) -> None:
        seen.append(name)
        time.sleep(seconds)

    stages = {"slow": lambda: stage("slow", 0.02), "fast": lambda: stage("fast", 0.0)}
    times = time_stages(stages, torch.device("cpu"), repeats=3, warmups=2)
    assert seen == ["slow", "fast"] * 5
    assert {name: len(values) for name, values in times.items()} == {"slow": 3, "fast": 3, "total": 3}
    assert min(times["slow"]) >= 20
    for slow, fast, total in zip(times["slow"], times["fast"], times["total"], strict=True):
        assert total == pytest.approx(slow + fast)


@pytest.mark.gpu
def test_on_a_gpu_a_stage_is_timed_by_what_it_launched() -> None:
    matrix = torch.ones(4096, 4096, device="cuda")

    def work() -> None:
        for _ in range(20):
            matrix @ matrix

    times = time_stages({"work": work, "nothing": lambda: None}, matrix.device, repeats=5, warmups=2)
    assert min(times["work"]) > 10 * max(times["nothing"])
