"""Subjects run in turn, warm-ups end when times are stable, and every subject gets its repetitions and seconds."""

import pytest

from dpbench.measure import interleave
from dpbench.measure.interleave import MOST_WARMUPS, Run, stable


class FakeTime:
    """A clock that moves only when a subject runs."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(interleave, "time", fake)
    return fake


def subject(
    name: str,
    seen: list[tuple[str, int]],
    times: list[float] | None = None,
    *,
    clock: FakeTime | None = None,
    seconds: float = 0.0,
) -> Run:
    def run(turn: int) -> dict[str, float]:
        seen.append((name, turn))
        if clock:
            clock.now += seconds
        return {"encode": 1.0, "ttft": times[min(turn, len(times) - 1)] if times else 10.0}

    return run


def test_rounds_go_through_all_subjects_in_turn() -> None:
    seen: list[tuple[str, int]] = []
    series = interleave.interleave([subject("a", seen), subject("b", seen)], repetitions=4, seconds=0, warmups=0)
    warmed = series[0].warmups
    assert seen == [(name, turn) for turn in range(warmed + 4) for name in "ab"]
    assert [len(each.seen) for each in series] == [4, 4]
    assert series[0].stages() == {"encode": (1.0,) * 4, "ttft": (10.0,) * 4}


def test_warm_up_goes_on_until_every_subject_is_stable() -> None:
    falling = [100.0, 80.0, 60.0, 40.0, 20.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    seen: list[tuple[str, int]] = []
    series = interleave.interleave(
        [subject("cold", seen, falling), subject("warm", seen)], repetitions=1, seconds=0, warmups=2
    )
    assert series[0].warmups == 10, "the last three times equal the three before"


def test_warm_up_ends_in_any_case() -> None:
    rising = [float(2**n) for n in range(100)]
    series = interleave.interleave([subject("a", [], rising)], repetitions=1, seconds=0, warmups=2)
    assert series[0].warmups == MOST_WARMUPS


def test_warm_up_ends_after_a_minute_of_long_prompts(clock: FakeTime) -> None:
    rising = [float(2**n) for n in range(100)]
    run = subject("a", [], rising, clock=clock, seconds=25.0)
    assert interleave.interleave([run], repetitions=1, seconds=0, warmups=2)[0].warmups == 3


def test_seconds_are_spent_in_the_fastest_subject_too(clock: FakeTime) -> None:
    runs = [subject("fast", [], clock=clock, seconds=0.5), subject("slow", [], clock=clock, seconds=1.0)]
    series = interleave.interleave(runs, repetitions=1, seconds=5.0, warmups=0)
    assert [one.seconds for one in series] == [5.0, 10.0]
    assert len(series[0].seen) == len(series[1].seen) == 10


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    interleave.interleave([subject("a", [])], repetitions=4, seconds=0, warmups=0, after_round=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("times", "expected"),
    [([10] * 5, False), ([10] * 6, True), ([10, 10, 10, 10.4, 10.4, 10.4], True), ([10, 10, 10, 11, 11, 11], False)],
)
def test_stable_is_two_medians_within_five_percent(times: list[float], expected: bool) -> None:
    assert stable(times) is expected
