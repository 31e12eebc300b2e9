"""Runs take turns, warm-up ends when times are stable, and every run gets its repetitions and seconds."""

import pytest

from dpbench.measure import interleave
from dpbench.measure.interleave import MAX_WARMUPS, Run, is_stable


class FakeTime:
    """A clock that moves only when a run moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(interleave, "time", fake)
    return fake


def make_run(
    name: str,
    calls: list[tuple[str, int]],
    times: list[float] | None = None,
    *,
    clock: FakeTime | None = None,
    seconds: float = 0.0,
) -> Run:
    def run(turn: int) -> dict[str, float]:
        calls.append((name, turn))
        if clock:
            clock.now += seconds
        return {"encode": 1.0, "ttft": times[min(turn, len(times) - 1)] if times else 10.0}

    return run


def test_every_round_runs_all_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    series = interleave.interleave([make_run("a", calls), make_run("b", calls)], repetitions=4, seconds=0, warmups=0)
    num_warmups = series[0].warmups
    assert calls == [(name, turn) for turn in range(num_warmups + 4) for name in "ab"]
    assert [len(one.rounds) for one in series] == [4, 4]
    assert series[0].stages() == {"encode": (1.0,) * 4, "ttft": (10.0,) * 4}


def test_warm_up_goes_on_until_every_run_is_stable() -> None:
    falling = [100.0, 80.0, 60.0, 40.0, 20.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    calls: list[tuple[str, int]] = []
    series = interleave.interleave(
        [make_run("cold", calls, falling), make_run("warm", calls)], repetitions=1, seconds=0, warmups=2
    )
    assert series[0].warmups == 10, "the last three times equal the three before"


def test_warm_up_ends_at_a_maximum_if_times_never_settle() -> None:
    rising = [float(2**n) for n in range(100)]
    series = interleave.interleave([make_run("a", [], rising)], repetitions=1, seconds=0, warmups=2)
    assert series[0].warmups == MAX_WARMUPS


def test_warm_up_ends_after_a_minute_of_long_prompts(clock: FakeTime) -> None:
    rising = [float(2**n) for n in range(100)]
    run = make_run("a", [], rising, clock=clock, seconds=25.0)
    assert interleave.interleave([run], repetitions=1, seconds=0, warmups=2)[0].warmups == 3


def test_the_fastest_run_also_gets_its_seconds(clock: FakeTime) -> None:
    runs = [make_run("fast", [], clock=clock, seconds=0.5), make_run("slow", [], clock=clock, seconds=1.0)]
    series = interleave.interleave(runs, repetitions=1, seconds=5.0, warmups=0)
    assert [one.seconds for one in series] == [5.0, 10.0]
    assert len(series[0].rounds) == len(series[1].rounds) == 10


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    interleave.interleave([make_run("a", [])], repetitions=4, seconds=0, warmups=0, after_round=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("times", "expected"),
    [([10] * 5, False), ([10] * 6, True), ([10, 10, 10, 10.4, 10.4, 10.4], True), ([10, 10, 10, 11, 11, 11], False)],
)
def test_stable_is_two_medians_within_five_percent(times: list[float], expected: bool) -> None:
    assert is_stable(times) is expected
