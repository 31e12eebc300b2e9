"""Stage times: warm-ups are discarded, ranges nest and add up, nothing waits before the last mark."""

import pytest
import torch

from dpbench.machine import profiler_ranges
from dpbench.measure import timing
from dpbench.measure.first_token import charge_reduce
from dpbench.measure.timing import Recorder, time_stages


class FakeClock:
    """A clock that the test moves; it records the marks that were waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited: list[float] = []

    def mark(self) -> float:
        return self.now

    def wait(self, mark: float) -> None:
        self.waited.append(mark)

    def ms_between(self, start: float, stop: float) -> float:
        return stop - start


def test_ranges_nest_add_up_and_wait_once_for_the_last() -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    with recorder.range("ttft"):
        for ms in (3.0, 4.0):
            with recorder.range("encode"):
                clock.now += ms
        with recorder.range("prefill"):
            clock.now += 20.0
            with recorder.range("rank"):
                clock.now += 5.0
    assert not clock.waited, "waited inside a timed region"
    assert recorder.ms() == {"encode": 7.0, "prefill": 25.0, "rank": 5.0, "ttft": 32.0}
    assert clock.waited == [32.0]


def test_what_a_method_adds_moves_into_reduce_and_the_total_stays() -> None:
    gross = {"encode": 10.0, "signals": 2.0, "reduce": 1.0, "splice": 0.5, "prefill": 30.0, "rank": 4.0, "ttft": 41.5}
    parts = charge_reduce(gross)
    assert parts == {"encode": 8.0, "signals": 2.0, "reduce": 7.0, "splice": 0.5, "prefill": 26.0, "ttft": 41.5}
    assert parts["encode"] + parts["reduce"] + parts["splice"] + parts["prefill"] == parts["ttft"]


def test_a_method_without_signals_has_no_such_stage() -> None:
    assert "signals" not in charge_reduce({"encode": 10.0, "reduce": 1.0, "prefill": 30.0, "ttft": 41.0})


def test_marked_ranges_reach_the_listener_and_only_while_it_listens() -> None:
    recorder = Recorder(FakeClock())
    with profiler_ranges.marked("before"):
        pass
    with profiler_ranges.listening(recorder), profiler_ranges.marked("during"):
        pass
    with profiler_ranges.marked("after"):
        pass
    assert [name for name, _, _ in recorder.ranges] == ["during"]


def test_a_listener_is_gone_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), profiler_ranges.listening(recorder := Recorder(FakeClock())):
        raise ZeroDivisionError
    with profiler_ranges.marked("after"):
        pass
    assert recorder.ranges == []


def test_stages_are_timed_in_order_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = FakeClock()
    monkeypatch.setattr(timing, "clock_of", lambda device: clock)

    def stage(name: str, ms: float) -> None:
        order.append(name)
        clock.now += ms

    stages = {"slow": lambda: stage("slow", 20.0), "fast": lambda: stage("fast", 1.0)}
    times = time_stages(stages, torch.device("cpu"), repeats=3, warmups=2)
    assert order == ["slow", "fast"] * 5
    assert times == {"slow": (20.0,) * 3, "fast": (1.0,) * 3, "total": (21.0,) * 3}


@pytest.mark.gpu
def test_on_a_gpu_a_stage_is_timed_by_what_it_launched() -> None:
    matrix = torch.ones(4096, 4096, device="cuda")

    def work() -> None:
        for _ in range(20):
            matrix @ matrix

    times = time_stages({"work": work, "nothing": lambda: None}, matrix.device, repeats=5, warmups=2)
    assert min(times["work"]) > 10 * max(times["nothing"])
